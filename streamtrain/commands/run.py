"""Learns from the source until stopped: SIGTERM or Ctrl-C commits what was learned and exits 0."""

from __future__ import annotations

import argparse
import sys

HELP = "learn from the source until stopped"
EXAMPLES = """\
examples:
  streamtrain run job.toml
  streamtrain run job.toml --until-end
  streamtrain run job.toml --profile trace.json   # open it in https://ui.perfetto.dev
  STREAMTRAIN__TRAINING__BATCH_SIZE=128 streamtrain run job.toml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="the job's TOML file")
    parser.add_argument(
        "--until-end", action="store_true", help="stop at the end of what the source holds now"
    )
    parser.add_argument(
        "--profile",
        metavar="FILE",
        help="write a trace of every stage for Perfetto (256 MiB at most), and say at the end which stage bounds the run",
    )


def run(arguments: argparse.Namespace) -> int:
    import os
    import signal
    import threading
    from pathlib import Path

    # From here on a signal is a wish to stop, also while libraries are imported: an interrupt inside one may be lost.
    wished = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: wished.set())
    # SIGHUP reloads settings; on a terminal it is the terminal that goes, and the daemon with it. A start reads them anyway.
    reloads = not sys.stderr.isatty()
    if reloads:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

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
    from streamtrain.supervisor import Supervisor

    keep_compiled(job.training.compiled_cache)

    async def main() -> None:
        profile = None if arguments.profile is None else Path(arguments.profile)
        service = Service(
            job,
            until_end=arguments.until_end,
            headstart=headstart,
            profile=profile,
            supervisor=Supervisor.of(os.environ),
            read_again=(lambda: load_job(arguments.config)) if reloads else None,
        )
        if wished.is_set():
            service.stop()
        try:
            last = await service.run()
        finally:
            if profile is not None:
                sys.stderr.write("".join(f"{line}\n" for line in service.report))
        if last is not None:
            sys.stderr.write(
                f"streamtrain: epoch {last.epoch}, {last.samples_total} samples learned in all\n"
            )

    uvloop.run(main())
    return 0
