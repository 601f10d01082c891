"""How old an event is when a serving process first uses it: Kafka, daemon, epoch log, deltas, follower.

    python -m benchmarks.freshness [--rate 3000] [--seconds 40] [--interval 1.0] [--json]

A real Kafka topic of 4 partitions is filled at a steady rate by a process of its own; `streamtrain run` learns from it
with a real Redis as its store; `streamtrain follow` applies the deltas in a third process.

How to read it: every epoch counts once per sample, with the time of its OLDEST sample, so the percentiles are upper
bounds. `event_to_commit_s` is waiting for the epoch's cut, so about `--interval` for an oldest sample;
`commit_to_visible_s` is append, sync, export and the follower's poll. `event_to_visible_s` p99 at most 2.4 s with
one-second epochs is what the project promises (`met`); `cores` are shares of one core while the stream flowed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import signal
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import Popen
from typing import Any, NamedTuple

import numpy as np

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
)
from streamtrain.log.reader import LogReader
from streamtrain.serving.freshness import weighted_percentile
from tests.daemon import Daemon, until
from tests.servers import KafkaServer, RedisServer

__all__ = ["Epoch", "ages", "measured", "overrides", "percentiles"]

BAR_S = 2.4
PARTITIONS = 4
TOPIC = "bench"
_PATIENCE_S = 60.0


class Epoch(NamedTuple):
    """A committed epoch that held samples. Times are milliseconds since 1970."""

    epoch: int
    samples: int
    oldest_ms: int
    committed_ms: int


def ages(
    epochs: Sequence[Epoch], sightings: Sequence[tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """When each epoch became visible, against its oldest sample and its commit.

    Args:
      epochs: those with samples.
      sightings: what the follower told, (epoch, visible at ms) in order. It tells the last of several that it applied
        at once, so an epoch became visible with the first sighting of it or of a later one.

    Returns:
      `[N]` samples, and seconds from event to visible, event to commit, commit to visible.

    Raises:
      ValueError: an epoch was never seen.
    """
    seen = np.array([epoch for epoch, _ in sightings], np.int64)
    first = np.searchsorted(seen, [epoch.epoch for epoch in epochs])
    if len(epochs) and (not len(seen) or first.max() >= len(seen)):
        raise ValueError(f"the follower never saw epoch {epochs[-1].epoch}")
    visible = np.array([at for _, at in sightings], np.int64)[first]
    samples, oldest, committed = np.array([epoch[1:] for epoch in epochs], np.int64).reshape(-1, 3).T
    return samples, (visible - oldest) / 1000, (committed - oldest) / 1000, (visible - committed) / 1000


def percentiles(seconds: np.ndarray, samples: np.ndarray) -> dict[str, float]:
    """p50, p95, p99 by samples, and the largest."""
    found = {f"p{p}": round(weighted_percentile(seconds, samples, p), 3) for p in (50, 95, 99)}
    return found | {"max": round(float(seconds.max()), 3)}


def overrides(
    folder: Path, *, source: Mapping[str, Any], store: str = "memory://", exports: bool = True
) -> dict[str, str]:
    """The environment that makes a job of the examples read `source` and write under `folder`."""

    def inline(table: Mapping[str, Any]) -> str:
        # JSON's strings, numbers, arrays and booleans are TOML's as well.
        return "{ " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in table.items()) + " }"

    deltas = inline({"kind": "deltas", "path": str(folder / "exports")})
    return {
        "STREAMTRAIN__SOURCE": inline(source),
        "STREAMTRAIN__LOG__PATH": json.dumps(str(folder / "model")),
        "STREAMTRAIN__STORE__URL": json.dumps(store),
        "STREAMTRAIN__EXPORTS": f"[{deltas}]" if exports else "[]",
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs everything; see the module."""
    about, folder = machine(), (FOLDER / "freshness").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    found = measured(folder, data(), options.rate, options.seconds, options.interval)
    return found | {"machine": about}


def measured(
    folder: Path, samples: Data, rate: float, seconds: float, interval_s: float, batch: int | None = None
) -> dict[str, Any]:
    """A stream of samples at a rate, with servers of its own, and how old they were when they could be used."""
    folder.mkdir(parents=True)
    config = folder / "job.toml"
    shutil.copy(samples.config, config)
    with KafkaServer() as kafka, RedisServer() as redis:
        asyncio.run(kafka.create_topic(TOPIC, PARTITIONS))
        source = {
            "kind": "kafka",
            "bootstrap_servers": kafka.bootstrap_servers,
            "topic": TOPIC,
            "group_id": TOPIC,
        }
        environment = overrides(folder, source=source, store=redis.url)
        environment["STREAMTRAIN__LOG__EPOCH_INTERVAL_S"] = str(interval_s)
        if batch is not None:
            environment["STREAMTRAIN__TRAINING__BATCH_SIZE"] = str(batch)
        environment["STREAMTRAIN__TRAINING__LINGER_MS"] = "50"
        with Daemon(config, **environment) as daemon:
            daemon.until_says("learning: epoch")
            told = folder / "follower.jsonl"
            with running(streamtrain("follow", folder / "exports", "--json"), told) as follower:
                until(lambda: told.stat().st_size, "the follower's first version")
                assert daemon.process is not None
                processes = {"daemon": daemon.process, "follower": follower}
                servers = {"kafka": kafka.pid, "redis": redis.pid}
                before, begin = counters(daemon.get("/metrics")[1]), time.monotonic()
                usage = _stream(rate, seconds, samples, kafka, folder, processes, servers)
                after = counters(daemon.get("/metrics")[1])
                stages = stage_shares(before, after, time.monotonic() - begin)
                _stop(follower)
            if code := daemon.stop():
                raise SystemExit(f"the daemon ended with {code}:\n{daemon.text[-3000:]}")
    about = {"data": samples.name, "rate_asked": round(rate), "epoch_interval_s": interval_s}
    return about | _report(folder, told) | {"stages": stages, **usage}


def _stream(
    rate: float,
    seconds: float,
    samples: Data,
    kafka: KafkaServer,
    folder: Path,
    processes: Mapping[str, Popen[bytes]],
    servers: Mapping[str, int],
) -> dict[str, Any]:
    """Produces at the rate until all of it is visible; what each process took meanwhile."""
    count = min(int(rate * seconds), samples.samples)
    command = streamtrain(
        *("produce", samples.lines, "--kafka", kafka.bootstrap_servers, "--topic", TOPIC),
        *("--rate", str(rate), "--count", str(count)),
    )
    ids = {name: process.pid for name, process in processes.items()} | dict(servers)
    with running(command, folder / "producer.out") as producer:
        ids["producer"] = producer.pid
        before, begin = {name: Usage.of(process) for name, process in ids.items()}, time.monotonic()
        peak, lasted = 0, 1.0
        while producer.poll() is None:
            peak = max(peak, Usage.of(ids["daemon"]).resident_bytes)
            after, lasted = {**before, **{n: Usage.of(p) for n, p in ids.items()}}, time.monotonic() - begin
            time.sleep(0.25)
        if producer.returncode:
            raise SystemExit(f"producing ended with {producer.returncode}")
    log = LogReader.open(folder / "model")
    until(
        lambda: log.describe(log.head() or 0).samples_total >= count, "all samples to be learned", _PATIENCE_S
    )
    head = log.head() or 0
    told = folder / "follower.jsonl"
    until(lambda: any(epoch >= head for epoch, _ in sightings(told)), "all of it to be visible", _PATIENCE_S)
    return {
        "cores": {n: round((after[n].processor_s - before[n].processor_s) / lasted, 3) for n in ids},
        "daemon_resident_mb": round(peak / 1e6, 1),
    }


def sightings(told: Path) -> list[tuple[int, int]]:
    """The whole lines of `streamtrain follow --json`: (epoch, visible at ms)."""
    lines = told.read_bytes().split(b"\n")[:-1]
    return [(version["epoch"], version["visible_at_ms"]) for version in map(json.loads, lines)]


def _stop(process: Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait(_PATIENCE_S)


def _report(folder: Path, told: Path) -> dict[str, Any]:
    log = LogReader.open(folder / "model")
    records = [
        record for record in map(log.describe, log.epochs()) if record.samples and record.record_time_ms
    ]
    epochs = [
        Epoch(record.epoch, record.samples, record.record_time_ms[0], record.committed_at_ms)
        for record in records
        if record.record_time_ms
    ]
    weights, visible, commit, view = ages(epochs, sightings(told))
    bytes_ = [path.stat().st_size for path in (folder / "exports" / "deltas").glob("*.safetensors")]
    span_s = (epochs[-1].committed_ms - epochs[0].oldest_ms) / 1000
    p99 = percentiles(visible, weights)["p99"]
    return {
        "samples": int(weights.sum()),
        "samples_per_s": round(int(weights.sum()) / span_s, 1),
        "epochs": len(epochs),
        "event_to_visible_s": percentiles(visible, weights),
        "event_to_commit_s": percentiles(commit, weights),
        "commit_to_visible_s": percentiles(view, weights),
        "bar_p99_s": BAR_S,
        "met": p99 <= BAR_S,
        "delta_bytes": {"median": int(statistics.median(bytes_)), "max": max(bytes_)},
    }


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = parser_of("freshness", __doc__)
    parser.add_argument("--rate", type=float, default=3000.0, help="samples a second (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=40.0, help="length of the stream (default: %(default)s)"
    )
    parser.add_argument("--interval", type=float, default=1.0, help="seconds an epoch (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.rate <= 0 or options.seconds <= 0:
        parser.error("--rate and --seconds must be above 0")
    return options


def main() -> None:
    options = options_of()
    skip_without("java", "mvn", "redis-server", "redis-cli", as_json=options.json)
    tell(measure(options), options.json)


if __name__ == "__main__":
    main()
