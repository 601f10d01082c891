"""What a soak with restarts runs: the servers, a daemon, a follower and a producer, and how each is started again."""

from __future__ import annotations

import argparse
import asyncio
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from benchmarks.freshness import overrides, sightings
from benchmarks.harness import Data, counters, running, streamtrain
from benchmarks.soak import KEPT, disk_mb, look
from benchmarks.throughput import PARTITIONS
from streamtrain.log.reader import LogReader
from tests.daemon import Daemon, until
from tests.servers import KafkaServer, RedisServer

__all__ = ["PATIENCE_S", "RESTARTS", "World"]

TOPIC = "soak"
PATIENCE_S = 120.0
_PRODUCER_TIMEOUT_S = 60
_USED = re.compile(r"^used_memory:(\d+)", re.M)


class World:
    """Everything that runs, and how each part is started again. What `stack` closes ends all of it.

    Args:
      folder: empty but for the samples; everything is written there, but what the servers keep.
      samples: of a round, and the job.
      counts: what each producer sends before it ends, in order.
      options: the command line's.
      stack: holds every process.

    Attributes:
      daemon, follower: those that run now.
      producer: the one that runs now, or has sent its count.
      sent: what producers have sent that have ended.
    """

    def __init__(
        self,
        folder: Path,
        samples: Data,
        counts: Sequence[int],
        options: argparse.Namespace,
        stack: ExitStack,
    ) -> None:
        self.folder, self._samples, self._rate, self._stack = folder, samples, options.rate, stack
        self._counts, self._starts = list(counts), Counter[str]()
        self.sent = 0
        self.kafka = stack.enter_context(KafkaServer())
        # With an append-only file it comes back with what it held.
        self.redis = stack.enter_context(RedisServer("--appendonly", "yes"))
        asyncio.run(self.kafka.create_topic(TOPIC, PARTITIONS, KEPT))
        servers = self.kafka.bootstrap_servers
        self._source = {"kind": "kafka", "bootstrap_servers": servers, "topic": TOPIC, "group_id": TOPIC}
        self._environment = self._settings(options.base_every)
        self.daemon = self._start_daemon()
        self.log = LogReader.open(folder / "model")
        self.follower = self._start_follower()
        self.producer = self._start_producer()

    def _settings(self, base_every: int) -> dict[str, str]:
        deltas = (
            f"{{ kind = 'deltas', path = '{self.folder / 'exports'}', base_every_epochs = {base_every} }}"
        )
        return overrides(self.folder, source=self._source, store=self.redis.url) | {
            "STREAMTRAIN__EXPORTS": f"[{deltas}]",
            "STREAMTRAIN__LOG__BASE_EVERY_EPOCHS": str(base_every),
            "STREAMTRAIN__LOG__KEEP_EPOCHS": str(2 * base_every),
        }

    def _start_daemon(self) -> Daemon:
        daemon = self._stack.enter_context(Daemon(self._samples.config, **self._environment))
        daemon.until_says("learning: epoch")
        return daemon

    def _start_follower(self) -> subprocess.Popen[bytes]:
        command = streamtrain("follow", self.folder / "exports", "--json", "--register", "soak")
        follower, told = self._start("follower", command)
        until(lambda: told.stat().st_size, "the follower's first version")
        return follower

    def _start_producer(self) -> subprocess.Popen[bytes]:
        count = self._counts[0]
        rounds = -(-count // self._samples.samples)
        command = streamtrain(
            *("produce", *[self._samples.lines] * rounds, "--config", self._samples.config),
            *("--rate", str(self._rate), "--count", str(count)),
        )
        # Where the broker is started on a busy machine, it is away for longer than a client waits by itself.
        source = self._source | {"request_timeout_s": _PRODUCER_TIMEOUT_S}
        environment = overrides(self.folder, source=source)
        settings = (f"{name}={value}" for name, value in environment.items())
        return self._start("producer", ["env", *settings, *command])[0]

    def _start(self, name: str, command: Sequence[str]) -> tuple[subprocess.Popen[bytes], Path]:
        self._starts[name] += 1
        output = self.folder / f"{name}-{self._starts[name]}.jsonl"
        return self._stack.enter_context(running(command, output)), output

    # Restarts

    def stop_daemon(self) -> None:
        """SIGTERM."""
        if code := self.daemon.stop():
            raise SystemExit(f"the daemon ended with {code}:\n{self.daemon.text[-3000:]}")

    def terminate_daemon(self) -> None:
        """SIGTERM, and starts it."""
        self.stop_daemon()
        self.daemon = self._start_daemon()

    def kill_daemon(self) -> None:
        """SIGKILL, and starts it."""
        self.daemon.kill()
        self.daemon = self._start_daemon()

    def kill_follower(self) -> None:
        """SIGKILL, and starts it."""
        self.follower.kill()
        self.follower.wait()
        self.follower = self._start_follower()

    def restart_redis(self) -> None:
        """SIGTERM, and starts it with its data."""
        self.redis.restart()

    def restart_kafka(self) -> None:
        """SIGTERM, and starts it with its data."""
        self.kafka.restart()

    def end_producer(self) -> None:
        """Waits until it has sent its count, all of it acknowledged."""
        if code := self.producer.wait(PATIENCE_S):
            raise SystemExit(f"the producer ended with {code}")
        self.sent += self._counts.pop(0)

    def next_producer(self) -> None:
        """`end_producer`, and starts another."""
        self.end_producer()
        self.producer = self._start_producer()

    # Looks

    def check(self, away: str) -> None:
        """Ends the run where a process has ended that should not, other than the one that is `away`."""
        if away != "daemon" and not self.daemon.running:
            raise SystemExit(f"the daemon ended by itself:\n{self.daemon.text[-3000:]}")
        if away != "follower" and self.follower.poll() is not None:
            raise SystemExit(f"the follower ended by itself with {self.follower.returncode}")
        if self.producer.poll():
            raise SystemExit(f"the producer ended with {self.producer.returncode}")

    def look(self, away: str) -> dict[str, float]:
        """All figures of now, but those of the part that is `away`."""
        self.check(away)
        seen = {"log_mb": disk_mb(self.folder / "model"), "exports_mb": disk_mb(self.folder / "exports")}
        if away != "follower":
            seen |= {f"follower_{name}": value for name, value in look(self.follower.pid).items()}
        if away != "redis":
            seen["redis_rss_mb"] = look(self.redis.pid)["rss_mb"]
            if found := _USED.search(self.redis.cli("INFO", "memory")):
                seen["redis_used_mb"] = int(found[1]) / 1e6
        if away != "daemon":
            assert self.daemon.process is not None
            seen |= {f"daemon_{name}": value for name, value in look(self.daemon.process.pid).items()}
            # A look that it does not answer in time has none of these.
            with suppress(OSError):
                page = counters(self.daemon.get("/metrics")[1])
                seen["lag_records"] = page.get("streamtrain_lag_records", 0.0)
                seen["rows"] = page.get("streamtrain_table_rows", 0.0)
                seen["store_behind"] = page["streamtrain_epoch"] - page.get(
                    "streamtrain_store_applied_epoch", -1.0
                )
        return seen

    @property
    def versions(self) -> list[tuple[int, int]]:
        """(epoch, visible at ms) of all that followers have told, in order."""
        files = [self.folder / f"follower-{n + 1}.jsonl" for n in range(self._starts["follower"])]
        return [version for file in files for version in sightings(file)]


RESTARTS: dict[str, tuple[str, Callable[[World], None]]] = {
    "daemon, SIGTERM": ("daemon", World.terminate_daemon),
    "daemon, kill -9": ("daemon", World.kill_daemon),
    "follower, kill -9": ("follower", World.kill_follower),
    "Redis": ("redis", World.restart_redis),
    "Kafka": ("kafka", World.restart_kafka),
    "producer": ("producer", World.next_producer),
}
"""By name, what is restarted, and how. The daemon comes first: its second half then has the restarts of all others in it."""
