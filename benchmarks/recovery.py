"""How long a daemon takes from its process's start to its first step, after kill -9, with all rows of a large model.

    python -m benchmarks.recovery [--rows 10000000] [--share 0.6] [--store memory redis] [--repeat 3] [--pause 0] [--json]

A real log (benchmarks/model.py: 152 bytes a row, Adagrad, dim 18, 23 slots) whose base holds all rows; then `streamtrain
run` learns from a Kafka topic (`--source files`: from a JSON-lines file) until the epochs after the base hold
`--share` of its bytes, and is killed: half is what `log.base_share` lets gather, and a tenth for the time that a fold takes, so the
worst case. Each measured start follows a kill -9 of the
daemon before it, at once or `--pause` seconds later, with samples waiting. The machine is warm: kernels and compiled
programs are on disk, the log is in the page cache. `memory` loads all rows; `redis` has applied the log before, and its
rows come on demand.

How to read it: `first_step_s` is the median of all starts of the store that is slowest. `phases` are seconds of the
median start; `compile` runs beside `base_check` to `epochs_load`. `cpu_s` (user + system) is what a busy machine disturbs
least: with free cores, `first_step_s` is less than it. `bytes_per_row` is private memory (RssAnon) at the first step; what a
process has without rows is in it (about 300 MB). Where a hypervisor takes freed memory back (free page reporting), a
`--pause` of some seconds shows what it costs to get it again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.harness import FOLDER, counters, machine, parser_of, skip_without, streamtrain, tell
from benchmarks.model import job_of, job_text, sample_lines, write_lines, write_model
from streamtrain import plugins
from streamtrain.config import Job
from streamtrain.log.reader import LogReader
from tests.daemon import Daemon, until
from tests.servers import KafkaServer, RedisServer

__all__ = ["options_of", "phases"]

BAR_S = 5.0
TOPIC = "bench"
PARTITIONS = 4
SAMPLES = 1_000_000
# A fold would outlive the daemon that is killed, and disturb the next start.
_NO_FOLDS = {"STREAMTRAIN__LOG__BASE_SHARE": "1000", "STREAMTRAIN__LOG__BASE_EVERY_EPOCHS": "1000000"}
_SETUP = _NO_FOLDS | {"STREAMTRAIN__LOG__EPOCH_INTERVAL_S": "0.05"}
_SILENT_S = 60.0
_PATIENCE_S = 900.0
_TIMED = re.compile(
    r"restored from (\d+) records: the first read in ([\d.]+) s, loaded in ([\d.]+) s; "
    r"the rest waited for ([\d.]+) s, loaded in ([\d.]+) s"
)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs everything; see the module."""
    about = machine()
    folder = (FOLDER / "recovery").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        source = stack.enter_context(_source(options, folder))
        config = folder / "job.toml"
        job = job_of(config, job_text(folder, source, rows_max=2 * options.rows))
        write_model(job, options.rows, *asyncio.run(_start_of(job)))
        _learn_until(config, LogReader.open(job.log.path), options.share)
        stores = {"memory": "memory://"}
        if "redis" in options.store:
            stores["redis"] = stack.enter_context(RedisServer()).url
        log = _about_log(LogReader.open(job.log.path))
        results = {store: _measure_store(config, stores[store], options) for store in options.store}
    shutil.rmtree(folder)
    slowest = max(result["first_step_s"] for result in results.values())
    return {
        "first_step_s": slowest,
        "bar_s": BAR_S,
        "met": slowest <= BAR_S,
        "rows": options.rows,
        "source": options.source,
        "pause_s": options.pause,
        "log": log,
        **results,
        "machine": about,
    }


@contextmanager
def _source(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Settings of a source that has samples waiting."""
    lines = folder / "samples.jsonl"
    write_lines(lines, sample_lines(options.rows, SAMPLES))
    if options.source == "files":
        yield {"kind": "files", "paths": [str(lines)], "follow": True}
        return
    with KafkaServer() as kafka:
        asyncio.run(kafka.create_topic(TOPIC, PARTITIONS))
        subprocess.run(
            streamtrain("produce", lines, "--kafka", kafka.bootstrap_servers, "--topic", TOPIC),
            check=True,
            capture_output=True,
        )
        yield {"kind": "kafka", "bootstrap_servers": kafka.bootstrap_servers, "topic": TOPIC}


async def _start_of(job: Job) -> tuple[dict[str, int], str]:
    """Where the source starts, and its identity."""
    source = plugins.load("consumers", job.source.kind)(job.source, until_end=False)
    try:
        return await source.start(None), source.identity
    finally:
        await source.close()


def _learn_until(config: Path, log: LogReader, share: float) -> None:
    """Runs a daemon that folds nothing until the epochs after the base hold that share of its bytes, and kills it."""
    base = log.bases()[-1]
    wanted = share * log.base_bytes(base)

    def gathered() -> bool:
        return log.epochs_bytes(range(base + 1, (log.head() or 0) + 1)) >= wanted

    with Daemon(config, **_SETUP) as daemon:
        seen, moved = log.head(), time.monotonic()
        while daemon.running and not gathered():
            time.sleep(0.2)
            if (head := log.head()) != seen:
                seen, moved = head, time.monotonic()
            if time.monotonic() - moved > _SILENT_S:
                raise SystemExit(
                    f"no epoch for {_SILENT_S:g} s: {SAMPLES:,} samples were too few for --share {share:g}"
                )
        if not daemon.running:
            raise SystemExit(f"the daemon ended:\n{daemon.text[-3000:]}")


def _about_log(log: LogReader) -> dict[str, Any]:
    base = log.bases()[-1]
    epochs = [epoch for epoch in log.epochs() if epoch > base]
    changed = [sum(len(t.ids) for t in log.describe(epoch).tables.values()) for epoch in epochs]
    return {
        "base_mb": round(log.base_path(base).stat().st_size / 1e6, 1),
        "epochs": len(epochs),
        "epochs_mb": round(sum(log.epoch_path(epoch).stat().st_size for epoch in epochs) / 1e6, 1),
        "epochs_rows": sum(changed),
    }


def _measure_store(config: Path, store: str, options: argparse.Namespace) -> dict[str, Any]:
    environment = _NO_FOLDS | {"STREAMTRAIN__STORE__URL": store}
    # The first start fills the store, where there is one, and warms the machine.
    _start(config, options.rows, **environment)
    starts = []
    for _ in range(options.repeat):
        time.sleep(options.pause)
        starts.append(_start(config, options.rows, **environment))
    starts.sort(key=lambda start: start["first_step_s"])
    median = starts[len(starts) // 2]
    return median | {"first_step_s_all": " ".join(str(start["first_step_s"]) for start in starts)}


def _start(config: Path, rows: int, **environment: str) -> dict[str, Any]:
    """One start up to its first step, then kill -9."""
    begin = time.time()
    with Daemon(config, **environment) as daemon:
        until(lambda: "learning: epoch" in daemon.text or not daemon.running, "readiness", _PATIENCE_S)
        if not daemon.running:
            raise SystemExit(f"the daemon ended:\n{daemon.text[-3000:]}")
        name = "streamtrain_first_step_timestamp_seconds"
        stepped = until(lambda: counters(daemon.get("/metrics")[1])[name], "the first step", _PATIENCE_S)
        assert daemon.process is not None
        process = Path(f"/proc/{daemon.process.pid}")
        user, system = process.joinpath("stat").read_text().rpartition(")")[2].split()[11:13]
        private = re.search(r"RssAnon:\s+(\d+) kB", process.joinpath("status").read_text())
        assert private is not None
    lines = [json.loads(line) for line in daemon.text.splitlines() if line.startswith("{")]
    return {
        "first_step_s": round(stepped - begin, 3),
        "cpu_s": {"user": int(user) / 100, "system": int(system) / 100},
        "bytes_per_row": round(1024 * int(private[1]) / rows, 1),
        "phases": phases(lines, begin, stepped),
    }


def phases(lines: Sequence[dict[str, Any]], begin: float, stepped: float) -> dict[str, float]:
    """Seconds of each phase of a start.

    Args:
      lines: the daemon's log, as JSON.
      begin: when the process was started, seconds since 1970.
      stepped: when it took its first step.
    """
    at = {line["message"]: datetime.fromisoformat(line["time"]).timestamp() - begin for line in lines}

    def when(start: str) -> float:
        return next(second for message, second in at.items() if message.startswith(start))

    told = next(match for message in at if (match := _TIMED.match(message)))
    compiled = next(message for message in at if message.startswith("compiled in "))
    first, load_first, rest, load_rest = map(float, told.groups()[1:])
    restored, ready = when("restored from"), when("learning: epoch")
    loading = first + load_first + rest + load_rest
    found = {
        "imports": when("metrics and probes at"),
        "open_log_and_store": restored - loading - when("metrics and probes at"),
        "compile": float(compiled.split()[2]),
        "base_check": first,
        "base_load": load_first,
        "epochs_wait_for_check": rest,
        "epochs_load": load_rest,
        "source_start": ready - restored,
        "first_step": stepped - begin - ready,
    }
    return {name: round(seconds, 3) for name, seconds in found.items()}


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = parser_of("recovery", __doc__)
    parser.add_argument("--rows", type=int, default=10_000_000, help="resident rows (default: %(default)s)")
    parser.add_argument(
        "--share",
        type=float,
        default=0.6,
        help="bytes of epochs after the base, of its own (default: %(default)s)",
    )
    parser.add_argument("--store", nargs="+", choices=("memory", "redis"), default=["memory", "redis"])
    parser.add_argument("--source", choices=("kafka", "files"), default="kafka")
    parser.add_argument("--repeat", type=int, default=3, help="measured starts (default: %(default)s)")
    parser.add_argument(
        "--pause", type=float, default=0.0, help="seconds from kill to start (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    if options.rows < 1000 or options.repeat < 1 or options.share < 0 or options.pause < 0:
        parser.error("--rows must be 1000 or more, --repeat 1 or more, --share and --pause 0 or more")
    return options


def main() -> None:
    options = options_of()
    programs = ["java", "mvn"] if options.source == "kafka" else []
    programs += ["redis-server", "redis-cli"] if "redis" in options.store else []
    skip_without(*programs, as_json=options.json)
    tell(measure(options), options.json)


if __name__ == "__main__":
    main()
