"""Looks at what a daemon will meet: its job, the machine, disks, Kafka, Redis. Says what is wrong and what mends it."""

from __future__ import annotations

import argparse
import sys

HELP = "look at a job, its machine and its servers"
EXAMPLES = """\
examples:
  streamtrain doctor job.toml
  streamtrain doctor job.toml --json

It may run beside the daemon: what it writes to try disks and stores, it removes. Run it as the daemon's user.
exit codes: 0 no fault (warnings are none), 1 a fault, 2 wrong settings
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="the job's TOML file")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(arguments: argparse.Namespace) -> int:
    import asyncio
    import logging

    from streamtrain.config import load_job
    from streamtrain.doctor import examine
    from streamtrain.doctor.report import as_json, as_text, exit_code

    job = load_job(arguments.config)
    # Clients tell each attempt to their logs; what it means stands in a finding.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    findings = asyncio.run(examine(job))
    sys.stdout.write(as_json(findings) if arguments.json else as_text(findings))
    return exit_code(findings)
