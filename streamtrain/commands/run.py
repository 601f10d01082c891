"""Learns from the source until stopped: SIGTERM or Ctrl-C commits what was learned and exits 0."""

from __future__ import annotations

import argparse
import sys

HELP = "learn from the source until stopped"
EXAMPLES = """\
examples:
  streamtrain run job.toml
  streamtrain run job.toml --until-end
  STREAMTRAIN__TRAINING__BATCH_SIZE=128 streamtrain run job.toml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="the job's TOML file")
    parser.add_argument(
        "--until-end", action="store_true", help="stop at the end of what the source holds now"
    )


def run(arguments: argparse.Namespace) -> int:
    import signal
    import threading

    # From here on a signal is a wish to stop, also while libraries are imported: an interrupt inside one may be lost.
    wished = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: wished.set())

    from streamtrain.config import load_job
    from streamtrain.log.headstart import Headstart
    from streamtrain.logs import configure_logging

    job = load_job(arguments.config)
    configure_logging(job.logging, job.name)
    headstart = Headstart(job.log.path) if job.store.url == "memory://" else None

    # What takes a second to import, beside the check of the base.
    import uvloop

    from streamtrain.dense.compiled import keep_compiled
    from streamtrain.service import Service

    keep_compiled(job.training.compiled_cache)

    async def main() -> None:
        service = Service(job, until_end=arguments.until_end, headstart=headstart)
        if wished.is_set():
            service.stop()
        last = await service.run()
        if last is not None:
            sys.stderr.write(
                f"streamtrain: epoch {last.epoch}, {last.samples_total} samples learned in all\n"
            )

    uvloop.run(main())
    return 0
