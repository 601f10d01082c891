"""The command line: parses arguments, runs one command, and turns its errors into a message and an exit code."""

from __future__ import annotations

import argparse
import importlib
import sys

from streamtrain import __version__
from streamtrain.errors import ConfigError, Fenced, StreamtrainError

__all__ = ["main"]

_COMMANDS = (
    "init",
    "check",
    "doctor",
    "run",
    "evaluate",
    "produce",
    "convert",
    "follow",
    "inspect",
    "verify",
    "replay",
    "rollback",
    "migrate",
)

_EXAMPLES = """\
examples:
  streamtrain init > job.toml                 a first job, every setting explained
  streamtrain run job.toml                    learn until stopped
  streamtrain run job.toml --until-end        learn what the source holds now
  streamtrain evaluate job.toml --json        score every sample before learning it; write nothing
  streamtrain inspect model/                  what the model has learned, and from where
  streamtrain follow exports/                 follow the deltas as a serving process does

exit codes: 0 done, 1 a fault, 2 wrong settings or arguments, 3 fenced by another daemon
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="streamtrain",
        description="Learns sparse CTR and recommendation models from a stream without end, exactly once.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"streamtrain {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in _COMMANDS:
        # Commands import what they need when they run: `--help` and `inspect` load neither JAX nor Kafka.
        module = importlib.import_module(f"streamtrain.commands.{name}")
        subparser = subparsers.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            epilog=module.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    parsed = parser.parse_args(arguments)
    try:
        return int(parsed.run(parsed) or 0)
    except ConfigError as error:
        return _fail(error, 2)
    except Fenced as error:
        return _fail(error, 3)
    except StreamtrainError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of a pipe went away (`| head`): nothing to say, and nowhere to say it.
        sys.stderr.close()
        return 0


def _fail(error: StreamtrainError, code: int) -> int:
    sys.stderr.write(f"streamtrain: {type(error).__name__}: {error}\n")
    return code
