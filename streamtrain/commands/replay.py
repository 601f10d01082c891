"""Redoes an epoch: restores the one before it, learns its recorded spans from the source again, compares all bits."""

from __future__ import annotations

import argparse
import sys

HELP = "redo an epoch from the source and compare the bits"
EXAMPLES = """\
examples:
  streamtrain replay model/ 120
  streamtrain replay model/ 120 --config job.toml    the source's address or secrets have changed since
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", metavar="DIR", help="the epoch log's directory")
    parser.add_argument("epoch", metavar="EPOCH", type=int, help="the epoch to redo")
    parser.add_argument("--config", help="the job's TOML file; default: the job as the log recorded it")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(arguments: argparse.Namespace) -> int:
    import asyncio
    import dataclasses

    import orjson

    from streamtrain.commands.progress import counting
    from streamtrain.config import load_job, parse_job
    from streamtrain.dense.compiled import keep_compiled
    from streamtrain.identity import check_same_model
    from streamtrain.log.epoch_log import EpochLog
    from streamtrain.replay import replay

    log = EpochLog.open(arguments.dir)
    if arguments.config:
        job = load_job(arguments.config)
        check_same_model(job, log.model.job, arguments.dir)
    else:
        job = parse_job(dict(log.model.job), f"{arguments.dir}/model.json")
    keep_compiled(job.training.compiled_cache)
    with counting("steps") as progress:
        result = asyncio.run(replay(job, log, arguments.epoch, progress))
    if arguments.json:
        sys.stdout.write(orjson.dumps(dataclasses.asdict(result), option=orjson.OPT_INDENT_2).decode() + "\n")
    elif result.equal:
        sys.stdout.write(
            f"epoch {result.epoch}: {result.steps} steps, {result.samples} samples: every bit is the same\n"
        )
    else:
        sys.stdout.write(f"epoch {result.epoch} came out different in: {', '.join(result.differences)}\n")
        if result.runtime:
            sys.stdout.write(
                f"it was learned with others than these: {'; '.join(result.runtime)}. They may round otherwise: replay it "
                "where it was learned, or with what it was learned with, before you look for damage\n"
            )
    return 0 if result.equal else 1
