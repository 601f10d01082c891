"""Whether anything grows: the daemon at full rate with Kafka, Redis, deltas and a follower, for as long as you like.

    python -m benchmarks.soak [--minutes 60] [--samples 400000] [--json]

A producer sends the same samples again and again, as fast as it can; so the model stops growing after the first round, and what
grows after that leaks. Every `--every` seconds: memory (`rss_mb`, and `rss_anon_mb`, which leaves the page cache out), file
descriptors and threads of the daemon and memory of the follower, and what stands on disk in the log and the exports.
`growth_per_hour` is the slope of a straight line through the second half of the run (least squares); `steps` tells
that it kept working. Base epochs are folded every `--base-every` epochs, so that folding, collecting and new bases happen
many times. Each look stands in build/bench/soak.jsonl at once, so that a run that ends early is not for nothing.
At a steady rate, with a restart of each component: `soak_restarts`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import throughput
from benchmarks.end_to_end import work_of
from benchmarks.freshness import overrides
from benchmarks.harness import (
    FOLDER,
    counters,
    machine,
    parser_of,
    running,
    skip_without,
    stage_shares,
    streamtrain,
    tell,
)
from tests.daemon import Daemon
from tests.servers import KafkaServer, RedisServer

__all__ = ["KEPT", "disk_mb", "growth_per_hour", "look", "options_of", "slope_per_hour"]

TOPIC = "soak"
KEPT = {"retention.bytes": str(1 << 30), "segment.bytes": str(64 << 20)}
"""Of each partition: far more than the daemon may be behind, and a bound on the disk."""
_FILES_MAX = 10_000  # Of one command line of the producer: days.


def look(process: int) -> dict[str, float]:
    """Memory, descriptors and threads of a process now (proc(5))."""
    folder = Path(f"/proc/{process}")
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    return {
        "rss_mb": int(status["VmRSS"].split()[0]) * 1024 / 1e6,
        "rss_anon_mb": int(status["RssAnon"].split()[0]) * 1024 / 1e6,
        "fds": len(list((folder / "fd").iterdir())),
        "threads": int(status["Threads"]),
    }


def slope_per_hour(at_s: Sequence[float], values: Sequence[float]) -> float:
    """The slope of the straight line through all points (least squares), by hour."""
    return float(np.polyfit(np.array(at_s) / 3600, values, 1)[0])


def growth_per_hour(at_s: Sequence[float], values: Sequence[float]) -> float:
    """The slope through the second half, by hour."""
    half = len(at_s) // 2
    return slope_per_hour(at_s[half:], values[half:])


def disk_mb(folder: Path) -> float:
    """What stands in a folder. Files that go meanwhile do not count."""
    size = 0
    for path in folder.rglob("*"):
        try:
            size += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return size / 1e6


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs it; see the module."""
    about, folder = machine(), (FOLDER / "soak").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    samples = work_of(folder, options.samples, options.rows, options.batch)
    seen: list[dict[str, float]] = []
    looks = FOLDER / "soak.jsonl"
    looks.unlink(missing_ok=True)
    with KafkaServer() as kafka, RedisServer() as redis:
        asyncio.run(kafka.create_topic(TOPIC, throughput.PARTITIONS, KEPT))
        source = {"kind": "kafka", "bootstrap_servers": kafka.bootstrap_servers, "topic": TOPIC}
        environment = overrides(folder, source=source, store=redis.url)
        environment["STREAMTRAIN__LOG__BASE_EVERY_EPOCHS"] = str(options.base_every)
        producing = streamtrain(
            *("produce", *[samples.lines] * _FILES_MAX),
            *("--kafka", kafka.bootstrap_servers, "--topic", TOPIC),
        )
        with Daemon(samples.config, **environment) as daemon:
            daemon.until_says("learning: epoch")
            following = streamtrain("follow", folder / "exports", "--json")
            with (
                running(following, folder / "follower.jsonl") as follower,
                running(producing, folder / "producer.out") as producer,
            ):
                assert daemon.process is not None
                first, begin = counters(daemon.get("/metrics")[1]), time.monotonic()
                while (passed := time.monotonic() - begin) < 60 * options.minutes:
                    for name, process in (("producer", producer), ("follower", follower)):
                        if process.poll() is not None:
                            raise SystemExit(f"the {name} ended with {process.returncode}")
                    page = {"streamtrain_table_rows": 0.0} | counters(daemon.get("/metrics")[1])
                    seen.append(
                        {"at_s": passed, "samples": page["streamtrain_samples_total"]}
                        | look(daemon.process.pid)
                        | {"follower_rss_anon_mb": look(follower.pid)["rss_anon_mb"]}
                        | {"log_mb": disk_mb(folder / "model"), "exports_mb": disk_mb(folder / "exports")}
                        | {"rows": page["streamtrain_table_rows"], "epoch": page["streamtrain_epoch"]}
                    )
                    with looks.open("a") as file:
                        file.write(json.dumps(seen[-1]) + "\n")
                    time.sleep(options.every)
                stages = stage_shares(first, page, passed)
            if code := daemon.stop():
                raise SystemExit(f"the daemon ended with {code}:\n{daemon.text[-3000:]}")
    shutil.rmtree(folder)
    at = [row["at_s"] for row in seen]
    grows = (
        "rss_mb",
        "rss_anon_mb",
        "fds",
        "threads",
        "follower_rss_anon_mb",
        "log_mb",
        "exports_mb",
        "rows",
    )
    return {
        "minutes": options.minutes,
        "samples_per_s": round((seen[-1]["samples"] - seen[0]["samples"]) / (at[-1] - at[0])),
        "stages": stages,
        "growth_per_hour": {
            name: round(growth_per_hour(at, [row[name] for row in seen]), 1) for name in grows
        },
        "seen": [{name: round(value, 1) for name, value in row.items()} for row in seen],
        "machine": about,
    }


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = parser_of("soak", __doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=400_000, help="of a round (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=2_000_000, help="that ids are of (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=5000, help="samples a minibatch (default: %(default)s)")
    parser.add_argument("--base-every", type=int, default=60, help="epochs a base (default: %(default)s)")
    parser.add_argument(
        "--every", type=float, default=15.0, help="seconds between looks (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    if options.minutes * 60 < 4 * options.every:
        parser.error("--minutes must leave room for four looks: a slope needs points")
    return options


def main() -> None:
    options = options_of()
    skip_without("java", "mvn", "redis-server", "redis-cli", as_json=options.json)
    tell(measure(options), options.json)


if __name__ == "__main__":
    main()
