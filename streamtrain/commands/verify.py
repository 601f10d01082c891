"""Checks a log whole: every byte against its digest, the chain, and each base against what it was folded from."""

from __future__ import annotations

import argparse
import sys

HELP = "check every byte of a log"
EXAMPLES = """\
examples:
  streamtrain verify model/
  streamtrain verify model/ --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", metavar="DIR", help="the epoch log's directory")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(arguments: argparse.Namespace) -> int:
    import dataclasses

    import orjson

    from streamtrain.commands.progress import counting
    from streamtrain.log.verify import verify

    with counting("bytes") as progress:
        report = verify(arguments.dir, progress)
    if arguments.json:
        found = dataclasses.asdict(report) | {"ok": report.ok}
        sys.stdout.write(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode() + "\n")
        return 0 if report.ok else 1
    for problem in report.problems:
        sys.stdout.write(f"{problem.file}: {problem.what}; {problem.remedy}\n")
    verdict = "sound" if report.ok else f"{len(report.problems)} problems"
    sys.stdout.write(
        f"{report.path}: {verdict}: {report.epochs} epochs and {report.bases} bases "
        f"({report.bytes / 1e6:,.1f} MB) up to epoch {report.head}\n"
    )
    return 0 if report.ok else 1
