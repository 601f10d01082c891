"""Several daemons of one model on a real broker: one learns, the others follow, and take over whatever ends the first."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.record import EpochRecord
from streamtrain.log.recovery import recover
from tests.chaos.oracle import folded
from tests.daemon import Daemon, streamtrain, until
from tests.servers import KafkaServer

pytestmark = pytest.mark.kafka
_numbers = itertools.count()
SESSION_S = 6.0

JOB = """
name = "ledger"
[source]
kind = "kafka"
bootstrap_servers = "{servers}"
topic = "{topic}"
group_id = "{topic}-mirror"
[schema]
labels = ["y"]
[schema.slots]
id = {{}}
[tables.main]
dim = 1
[model]
kind = "linear"
[training]
batch_size = 16
linger_ms = 20
[log]
path = "{folder}/model"
epoch_interval_s = 0.1
base_every_epochs = 20
keep_epochs = 40
[failover]
group_id = "{topic}-owners"
session_timeout_s = 6
heartbeat_interval_s = 0.5
[[exports]]
kind = "deltas"
path = "{folder}/exports"
"""


class World:
    """A topic, a job, and daemons of it."""

    def __init__(self, kafka: KafkaServer, folder: Path) -> None:
        self.kafka, self.folder = kafka, folder
        self.topic = f"failover-{next(_numbers)}"
        self.log = folder / "model"
        self._stack = ExitStack()
        self._made = itertools.count()
        self._ids = itertools.count()
        asyncio.run(kafka.create_topic(self.topic, 2))

    def daemon(self, **environment: str) -> Daemon:
        """Starts one more. Each has a file of its own: a daemon's output is named after it."""
        config = self.folder / f"job-{next(self._made)}.toml"
        config.write_text(
            JOB.format(servers=self.kafka.bootstrap_servers, topic=self.topic, folder=self.folder)
        )
        return self._stack.enter_context(Daemon(config, **environment))

    def produce(self, count: int) -> None:
        values = [json.dumps({"id": i, "y": i % 2}).encode() for i in itertools.islice(self._ids, count)]
        asyncio.run(self.kafka.produce(self.topic, values))

    @property
    def head(self) -> EpochRecord | None:
        if not (self.log / "model.json").exists():
            return None
        log = EpochLog.open(self.log)
        head = log.head()
        return None if head is None else log.describe(head)

    def learned(self, count: int) -> None:
        until(lambda: (head := self.head) and head.samples_total == count, f"{count} samples in the log")

    def check(self, count: int) -> None:
        """Every id was learned exactly once, and the log is sound."""
        _, counts = folded(recover(EpochLog.open(self.log)), "main")
        assert len(counts) == count and set(counts.values()) == {1}
        verified = streamtrain("verify", self.log)
        assert verified.returncode == 0, verified.stdout

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def world(kafka: KafkaServer, tmp_path: Path) -> Iterator[World]:
    world = World(kafka, tmp_path)
    yield world
    world.close()


def phase(daemon: Daemon) -> str:
    return json.loads(daemon.get("/readyz")[1])["phase"]


def stands_by(daemon: Daemon) -> None:
    until(lambda: phase(daemon) == "standby", "the daemon to stand by")
    until(lambda: "joining the other daemons" in daemon.text, "it to join")


def test_a_standby_takes_over_when_the_owner_is_killed(world: World) -> None:
    world.produce(500)
    owner = world.daemon()
    world.learned(500)
    standby = world.daemon()
    stands_by(standby)
    owner.kill()
    world.produce(300)
    world.learned(800)
    assert phase(standby) == "learning"
    print(standby.text)
    assert standby.stop() == 0
    world.check(800)
