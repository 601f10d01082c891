"""Checks a job without a network: settings, secrets, certificates, plug-ins, the model, and the log that it names."""

from __future__ import annotations

import argparse
import sys

HELP = "check a job, without a network"
EXAMPLES = """\
examples:
  streamtrain check job.toml
  streamtrain check job.toml --json

exit codes: 0 no fault, 1 a fault, 2 wrong settings
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="the job's TOML file")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(arguments: argparse.Namespace) -> int:
    from streamtrain.config import load_job
    from streamtrain.doctor import check
    from streamtrain.doctor.report import as_json, as_text, exit_code

    findings = check(load_job(arguments.config))
    sys.stdout.write(as_json(findings) if arguments.json else as_text(findings))
    return exit_code(findings)
