"""The world that faults happen in: broker, Redis, proxies, stream, trainer, follower; all of them real processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import redis

from streamtrain.log.epoch_log import EpochLog
from tests.chaos.job import FAILOVER, JOB
from tests.chaos.nursery import Child, Nursery
from tests.chaos.proxy import Proxy
from tests.chaos.stream import BrokerForChaos, Stream
from tests.chaos.watch import Watch
from tests.servers import RedisServer, free_port

__all__ = ["RECOVERY_MAX_S", "TOPIC", "World", "say"]

TOPIC = "ledger"
SHARDS = 4
RECOVERY_MAX_S = 90.0
_Result = TypeVar("_Result")

_ENVIRONMENT = {
    # Every start compiles the same few programs; between starts they are found on disk.
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "STREAMTRAIN__LOGGING__FORMAT": "json",
}


def say(text: str) -> None:
    """A progress line."""
    sys.stderr.write(f"chaos {time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


class World:
    """A context manager; leaving it ends every process that it started.

    Args:
      folder: empty; everything is kept below it.
      seed: of the job and the stream.
      rate_hz: samples a second.
      standbys: daemons beside the trainer; where there are any, one of them follows a trainer that ends.

    Attributes:
      trainer: the daemon that learns.
      standbys: the others.
      takeovers_s: by kind of fault, seconds from the end of an owner to the first epoch with samples of another.
      head: the newest epoch seen in the log's directory.
      exits: how often the trainer ended by itself, by exit code and last words.
      violations: what must not happen and did.
    """

    def __init__(self, folder: Path, seed: int, rate_hz: float, standbys: int = 0) -> None:
        self._standbys_wanted, self._ownerless = standbys, False
        self.standbys: list[Child] = []
        self.takeovers_s: dict[str, list[float]] = {}
        self.folder, self.seed, self._rate_hz = folder, seed, rate_hz
        self.log, self.exports, self.archive = folder / "model", folder / "exports", folder / "archive"
        self.config = folder / "job.toml"
        self.head = -1
        self.exits: Counter[str] = Counter()
        self.violations: list[str] = []
        self.starts = 0
        self._stack = contextlib.ExitStack()
        self._loop = asyncio.new_event_loop()
        self.trainer: Child
        self.follower: Child

    def __enter__(self) -> World:
        try:
            self._set_up()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def on_loop(self, coroutine: Coroutine[Any, Any, _Result], timeout_s: float = 120.0) -> _Result:
        """Runs a coroutine on the loop of stream and proxies, and waits for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout_s)

    def _set_up(self) -> None:
        threading.Thread(target=self._loop.run_forever, name="loop", daemon=True).start()
        self._stack.callback(self._loop.call_soon_threadsafe, self._loop.stop)
        (self.archive / "epochs").mkdir(parents=True)
        for name in ("bases", "tmp"):
            (self.archive / name).mkdir()
        self.watch = Watch(self.folder)
        self.watch.always("append: linked", self._keep)

        inner = free_port()
        self.kafka_proxy = self._proxy(inner)
        (self.folder / "kafka").mkdir()
        self.broker = self._stack.enter_context(
            BrokerForChaos(self.folder / "kafka", inner, self.kafka_proxy.port)
        )
        (self.folder / "redis").mkdir()
        self.redis = self._stack.enter_context(RedisServer(folder=self.folder / "redis"))
        self.redis_proxy = self._proxy(self.redis.port)
        self.client = redis.Redis(port=self.redis.port, socket_timeout=1)
        self.config.write_text(
            JOB.format(
                seed=self.seed,
                kafka=self.kafka_proxy.port,
                redis=self.redis_proxy.port,
                topic=TOPIC,
                folder=self.folder,
                shards=SHARDS,
            )
            + (FAILOVER if self._standbys_wanted else "")
        )
        compacted = {
            "cleanup.policy": "compact",
            "min.cleanable.dirty.ratio": "0.01",
            "segment.ms": "100",
            "min.compaction.lag.ms": "0",
        }
        self.on_loop(self.broker.create_topic(TOPIC, 2, compacted))
        self.stream = Stream(self.broker.bootstrap_servers, TOPIC, 2, self._rate_hz, self.seed)
        self.on_loop(self.stream.compacted_beginning(self.broker))
        self.nursery = self._stack.enter_context(Nursery(self.config))
        self._producing = asyncio.run_coroutine_threadsafe(self.stream.run(), self._loop)
        self.start_trainer()
        self.start_follower()
        if self._standbys_wanted:
            self.until(lambda: self.learning, "the first trainer to be the owner")
        for _ in range(self._standbys_wanted):
            self.start_standby()

    def _proxy(self, target: int) -> Proxy:
        proxy = Proxy(target)
        self.on_loop(proxy.start())
        self._stack.callback(lambda: self.on_loop(proxy.close()))
        return proxy

    def _keep(self, name: str) -> None:
        """Links an epoch into the archive, so that all of them are there at the end, whatever is collected."""
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            os.link(self.log / "epochs" / name, self.archive / "epochs" / name)
        self.head = max(self.head, int(name.split(".")[0]))

    # Processes

    def start_trainer(self) -> Child:
        """Starts `streamtrain run`."""
        self.trainer = self._start_daemon()
        self.started_at_epoch = self.head
        return self.trainer

    def start_standby(self) -> None:
        """Starts `streamtrain run` beside the trainer."""
        self.standbys.append(self._start_daemon())

    def _start_daemon(self) -> Child:
        self.starts += 1
        return self.nursery.start(
            ["run", str(self.config)],
            self.folder / f"trainer-{self.starts:04d}.out",
            _ENVIRONMENT | {"JAX_COMPILATION_CACHE_DIR": str(self.folder.parent / "jax-cache")},
        )

    def take_over(self, kind: str, began: float) -> None:
        """Waits until a standby has committed an epoch with samples: it is the trainer from then on.

        Args:
          kind: of fault, for the figures.
          began: when the owner was gone, by the monotonic clock.
        """
        self._ownerless = True
        try:
            self.until(lambda: self._successor() is not None, f"a standby to take over ({kind})")
        finally:
            self._ownerless = False
        self.takeovers_s.setdefault(kind, []).append(time.monotonic() - began)
        successor = self._successor()
        assert successor is not None
        self.standbys.remove(successor)
        self.trainer, self.started_at_epoch = successor, self.head

    def _successor(self) -> Child | None:
        """The standby that has committed the newest epoch, of samples."""
        log = EpochLog.open(self.log)
        record = log.describe(log.head() or 0)
        found = (child for child in self.standbys if record.writer.endswith(f"/{child.pid}"))
        return next(found, None) if record.samples else None

    def start_follower(self) -> None:
        """Starts `streamtrain follow`."""
        self.starts += 1
        self.follower = self.nursery.start(
            ["follow", str(self.exports), "--json"],
            self.folder / f"follower-{self.starts:04d}.out",
            _ENVIRONMENT,
        )

    def kill(self, child: Child) -> None:
        """SIGKILL, and waits until it is gone."""
        child.signal(signal.SIGKILL)
        child.wait(30)

    def tend(self) -> None:
        """What a supervisor does: starts again what has ended by itself."""
        for child in [child for child in self.standbys if not child.running]:
            self._note_end("a standby", child)
            self.standbys.remove(child)
            self.start_standby()
        if not self.trainer.running and not self._ownerless:
            self._note_end("the trainer", self.trainer)
            if self._standbys_wanted:
                began = time.monotonic()
                self.start_standby()
                self.take_over("ended by itself", began)
            else:
                self.start_trainer()
        if not self.follower.running:
            self.violations.append(f"the follower ended by itself with {self.follower.code}")
            self.start_follower()

    def _note_end(self, who: str, child: Child) -> None:
        last = (child.text.strip().splitlines() or ["nothing"])[-1]
        words = last.split(": ")[1] if last.startswith("streamtrain: ") else last[:200]
        self.exits[f"{child.code} {words}"] += 1
        say(f"{who} ended by itself with {child.code}: {last[:300]}")

    # Where things stand

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = RECOVERY_MAX_S) -> float:
        """Waits, tending the processes; returns the seconds.

        Raises:
          TimeoutError: naming what did not come.
        """
        begin = time.monotonic()
        while not condition():
            self.tend()
            if time.monotonic() - begin > timeout_s:
                raise TimeoutError(f"waited {timeout_s:.0f} s in vain for {what}")
            time.sleep(0.01)
        return time.monotonic() - begin

    @property
    def learning(self) -> bool:
        """Whether this trainer has committed an epoch."""
        return self.head > self.started_at_epoch

    @property
    def standing_by(self) -> bool:
        """Whether every standby is warm, and a member of the group."""
        return all("standing by in group" in child.text for child in self.standbys)

    @property
    def owned(self) -> bool:
        """Whether the newest epoch is this trainer's own work, whoever else writes."""
        log = EpochLog.open(self.log)
        head = log.head()
        return head is not None and log.describe(head).writer.endswith(f"/{self.trainer.pid}")

    def store_epoch(self) -> int:
        """The epoch that every shard of the store has, as its meta keys say; -1 where one has none."""
        try:
            model = json.loads((self.log / "model.json").read_text())["model_id"][:12]
            held = [self.client.hget(f"streamtrain:{{{model}.{n}}}:meta", "epoch") for n in range(SHARDS)]
        except (OSError, redis.RedisError):
            return -1
        return min(-1 if epoch is None else int(epoch) for epoch in held)

    def follower_epoch(self) -> int:
        """The newest epoch that the follower has told of; -1 before the first."""
        try:
            with self.follower.output.open("rb") as file:
                file.seek(max(0, self.follower.output.stat().st_size - 4096))
                lines = [line for line in file.read().split(b"\n")[:-1] if line.startswith(b'{"epoch"')]
            return int(json.loads(lines[-1])["epoch"]) if lines else -1
        except (OSError, ValueError):
            return -1

    # The end

    def settle(self) -> set[int]:
        """Heals everything, ends the stream, and lets a last trainer learn to its end. Returns the ids at the ends."""
        for proxy in (self.kafka_proxy, self.redis_proxy):
            proxy.delay_s, proxy.mute = 0.0, False
        self.broker.start()
        self.redis.start()
        self.tend()
        self.on_loop(self.stream.stop())
        self._producing.result(120)
        ends = self.on_loop(self.stream.last_words())
        # The trainer last: nobody is left to take over from it.
        for child in (*self.standbys, self.trainer):
            child.signal(signal.SIGTERM)
            if code := child.wait(60):
                self.violations.append(f"SIGTERM at the end: {child.output.name} ended with {code}")
        self.starts += 1
        last = self.nursery.start(
            ["run", str(self.config), "--until-end"],
            self.folder / f"trainer-{self.starts:04d}.out",
            _ENVIRONMENT,
        )
        if code := last.wait(180):
            raise RuntimeError(f"the last trainer ended with {code}: {last.text[-2000:]}")
        for path in (self.log / "epochs").iterdir():
            self._keep(path.name)
        shutil.copyfile(self.log / "model.json", self.archive / "model.json")
        begin = time.monotonic()
        while self.follower_epoch() < self.head:
            if time.monotonic() - begin > 60:
                self.violations.append(
                    f"the follower stands at {self.follower_epoch()}, the log at {self.head}: {self.follower.text[-500:]}"
                )
                break
            time.sleep(0.05)
        self.follower.signal(signal.SIGTERM)
        if code := self.follower.wait(30):
            self.violations.append(f"SIGTERM at the end: the follower ended with {code}")
        return ends
