"""Converts files of samples between JSON lines, Parquet and Arrow, and groups flat samples into the trees of a schema."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

HELP = "files to other formats, flat samples to trees"
EXAMPLES = """\
examples:
  streamtrain convert clicks.jsonl clicks.arrow --config job.toml --group            trees of neighbours that agree
  streamtrain convert clicks.parquet trees.parquet --config job.toml --group-by user,ad     sorted by them before
  streamtrain convert trees.jsonl trees.arrow --config job.toml                      another format, the same records

Samples are in a tree together where they follow one another and have equal values in the fields of its level
([[schema.levels]] and each slot's `level`). --group-by sorts windows of samples first, in memory; what it brings
together changes the order in which samples are learned.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", metavar="IN", nargs="+", type=Path, help="JSON lines (plain, .gz, .zst), Parquet, Arrow"
    )
    parser.add_argument("output", metavar="OUT", type=Path, help=".jsonl, .parquet or .arrow; must not exist")
    parser.add_argument(
        "--config", metavar="JOB", required=True, help="the job, whose schema says what a sample is"
    )
    parser.add_argument("--group", action="store_true", help="make trees of flat samples")
    parser.add_argument("--group-by", metavar="FIELDS", help="the same, sorted by these fields before: a,b")
    parser.add_argument(
        "--window",
        type=int,
        default=100_000,
        metavar="N",
        help="samples that are sorted at a time (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    from streamtrain.commands.progress import counting
    from streamtrain.config import load_job
    from streamtrain.errors import ConfigError
    from streamtrain.produce.convert import Grouping, convert

    job = load_job(arguments.config)
    if arguments.window < 1:
        raise ConfigError(f"--window {arguments.window}: must be above 0")
    grouping = None
    if arguments.group or arguments.group_by:
        by = [name for name in (arguments.group_by or "").split(",") if name]
        grouping = Grouping(job.sample_schema, by, arguments.window, job.source.leaves_max)
    try:
        with counting("records") as progress:
            done = convert(arguments.files, arguments.output, job.sample_schema, grouping, progress)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from error
    result = {
        "samples": done.samples,
        "records": done.records,
        "repetition": round(done.repetition, 2),
        "bytes_in": done.bytes_in,
        "bytes_out": done.bytes_out,
        "bytes_saved": round(1 - done.bytes_out / done.bytes_in, 4) if done.bytes_in else 0.0,
    }
    sys.stdout.write(
        json.dumps(result) + "\n"
        if arguments.json
        else f"{done.samples:,} samples in {done.records:,} records ({done.repetition:.1f} samples a record); "
        f"{done.bytes_in:,} bytes became {done.bytes_out:,} ({result['bytes_saved']:.1%} saved)\n"
    )
    return 0
