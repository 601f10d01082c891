"""Samples a second through the whole daemon: source, decoding, learning, durable epochs; and which stage is the bound.

    python -m benchmarks.throughput [--source parquet jsonl kafka] [--batch 64 1024] [--json]

Each run is `streamtrain run` over all samples of a new model: from Parquet, JSON lines (files) or JSON in a Kafka topic
of 4 partitions; `plain` has neither store nor exports, `full` has a real Redis, a delta export and a follower of it. The clock runs from
readiness until all but everything is learned; epochs are cut, synced and exported every second meanwhile. Compilation is left
out: it happens before readiness. `evaluate` is the same learning without a log.

How to read it: `read` to `commit` are shares of the wall clock that a stage was at work. `trainer_waits` near 0: the
trainer thread is the bound. `decode` near 1: decoding is. Neither: the source, or the machine has too few `cores` for
what runs beside the daemon (the broker and Redis share them here): `samples_per_core_s`, by processor time, is what a
busy machine disturbs least. `behind` is how many epochs the views of the log
(Redis, deltas) were behind when the last sample was learned.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.freshness import overrides
from benchmarks.harness import (
    FOLDER,
    Data,
    Usage,
    counters,
    data,
    machine,
    parser_of,
    running,
    skip_without,
    stage_shares,
    streamtrain,
    tell,
    thread_seconds,
)
from tests.daemon import Daemon
from tests.servers import KafkaServer, RedisServer

__all__ = ["PARTITIONS", "learned", "options_of"]

SOURCES = ("parquet", "jsonl", "kafka")
PARTITIONS = 4
TOPIC = "bench"
_POLL_S = 0.5
"""Making and reading a page of metrics takes some 10 ms on either side, which are the daemon's cores."""
_AT, _SAMPLES = "at_s", "streamtrain_samples_total"
_PATIENCE_S = 300.0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs everything; see the module."""
    about, samples = machine(), data()
    folder = (FOLDER / "throughput").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        kafka = stack.enter_context(KafkaServer()) if "kafka" in options.source else None
        if kafka is not None:
            _fill(kafka, samples)
        runs = [
            _run(folder, samples, source, batch, kafka, redis if full else None)
            for source, batch, full in product(options.source, options.batch, (False, True))
        ]
    evaluated = [_evaluate(samples, batch) for batch in options.batch]
    return {
        "data": samples.name,
        "samples": samples.samples,
        "runs": runs,
        "evaluate": evaluated,
        "machine": about,
    }


def _fill(kafka: KafkaServer, samples: Data) -> None:
    asyncio.run(kafka.create_topic(TOPIC, PARTITIONS))
    command = streamtrain("produce", samples.lines, "--kafka", kafka.bootstrap_servers, "--topic", TOPIC)
    subprocess.run(command, check=True, capture_output=True)


def _run(
    folder: Path, samples: Data, source: str, batch: int, kafka: KafkaServer | None, redis: RedisServer | None
) -> dict[str, Any]:
    """One daemon over all samples of one source."""
    where = folder / f"{source}-{batch}-{'plain' if redis is None else 'full'}"
    section: dict[str, Any]
    if kafka is not None and source == "kafka":
        section = {"kind": "kafka", "bootstrap_servers": kafka.bootstrap_servers, "topic": TOPIC}
    else:
        path = samples.parquet if source == "parquet" else samples.lines
        # It follows, so that the daemon and its metrics are still there when everything is learned.
        section = {"kind": "files", "paths": [str(path)], "follow": True}
    about = {"source": source, "batch": batch, "views": "plain" if redis is None else "full"}
    return about | learned(where, samples, section, batch, redis)


def learned(
    where: Path,
    samples: Data,
    source: Mapping[str, Any],
    batch: int,
    redis: RedisServer | None,
    beside: Mapping[str, int] = MappingProxyType({}),
    after: int = 0,
) -> dict[str, Any]:
    """One daemon over all samples of `source`. With `redis` come exports, and a process that follows them.

    Args:
      beside: processes by name whose processor time is told too. That of the daemon is told by kind of thread.
      after: the clock runs once so many samples are learned.
    """
    where.mkdir()
    config = where / "job.toml"
    shutil.copy(samples.config, config)
    store = "memory://" if redis is None else redis.url
    environment = overrides(where, source=source, store=store, exports=redis is not None)
    environment["STREAMTRAIN__TRAINING__BATCH_SIZE"] = str(batch)
    others = dict(beside)
    with ExitStack() as stack:
        daemon = stack.enter_context(Daemon(config, **environment))
        daemon.until_says("learning: epoch")
        if redis is not None:
            following = streamtrain("follow", where / "exports", "--json")
            others["follower"] = stack.enter_context(running(following, where / "follower.jsonl")).pid
            others["redis"] = redis.pid
        looks = _looks(daemon, others)
        first = next(looks)
        while first[_SAMPLES] < after:
            first = next(looks)
        before = last = next(looks)
        while last[_SAMPLES] < samples.samples:
            before, last = last, next(looks)
        if code := daemon.stop():
            raise SystemExit(f"the daemon ended with {code}:\n{daemon.text[-3000:]}")
    # The last look may have come any time after the last sample: what is told ends with the one before.
    last = before if before[_SAMPLES] > first[_SAMPLES] else last
    if last[_SAMPLES] == first[_SAMPLES]:
        raise SystemExit(f"all {samples.samples} samples were learned within {_POLL_S} s: measure more")
    seconds, count = last[_AT] - first[_AT], last[_SAMPLES] - first[_SAMPLES]
    views = {"streamtrain_store_applied_epoch", "streamtrain_export_epoch"} if redis is not None else set()
    processor = last["process_cpu_seconds_total"] - first["process_cpu_seconds_total"]
    spent = thread_seconds(first, last) | {name: last[name] - first[name] for name in others}
    shutil.rmtree(where)
    return {
        "samples_per_s": round(count / seconds),
        **stage_shares(first, last, seconds),
        "cores": round(processor / seconds, 2),
        "samples_per_core_s": round(count / processor),
        "epochs": int(last["streamtrain_epoch"] - first["streamtrain_epoch"]),
        "processor_us_a_sample": {name: round(1e6 * spent[name] / count, 2) for name in sorted(spent)},
        "behind": int(max((last["streamtrain_epoch"] - last.get(view, 0) for view in views), default=0)),
    }


def _looks(daemon: Daemon, others: Mapping[str, int]) -> Iterator[dict[str, float]]:
    """Looks at `/metrics` again and again, at the clock, and at the processor time of processes by name.

    Raises:
      SystemExit: the daemon has ended, or is not done in time.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        if not daemon.running:
            raise SystemExit(f"the daemon ended:\n{daemon.text[-3000:]}")
        page = counters(daemon.get("/metrics")[1])
        spent = {name: Usage.of(process).processor_s for name, process in others.items()}
        yield {"streamtrain_epoch": 0.0} | page | spent | {_AT: time.monotonic()}
        time.sleep(_POLL_S)
    raise SystemExit(
        f"the daemon did not learn everything within {_PATIENCE_S:.0f} s:\n{daemon.text[-3000:]}"
    )


def _evaluate(samples: Data, batch: int) -> dict[str, Any]:
    section = f"{{ kind = 'files', paths = [{json.dumps(str(samples.parquet))}] }}"
    environment = {"STREAMTRAIN__SOURCE": section, "STREAMTRAIN__TRAINING__BATCH_SIZE": str(batch)}
    command = streamtrain("evaluate", samples.config, "--json")
    run = subprocess.run(command, check=True, capture_output=True, env=os.environ | environment)
    found = json.loads(run.stdout)
    return {"batch": batch, "samples_per_s": round(found["samples_per_s"]), "auc": round(found["auc"], 4)}


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = parser_of("throughput", __doc__)
    parser.add_argument(
        "--source", nargs="+", choices=SOURCES, default=list(SOURCES), help="what to read (default: all)"
    )
    parser.add_argument(
        "--batch", nargs="+", type=int, default=[64, 1024], help="samples a minibatch (default: 64 1024)"
    )
    return parser.parse_args(arguments)


def main() -> None:
    options = options_of()
    needed = ["redis-server", "redis-cli"] + (["java", "mvn"] if "kafka" in options.source else [])
    skip_without(*needed, as_json=options.json)
    tell(measure(options), options.json)


if __name__ == "__main__":
    main()
