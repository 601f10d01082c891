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

from consumers.kafka.group import GroupMember
from streamtrain.kafka_connection import KafkaConnection
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.record import EpochRecord
from streamtrain.log.recovery import recover
from streamtrain.ownership import Candidate, FailoverSettings
from tests.chaos.oracle import folded
from tests.daemon import Daemon, inspected, streamtrain, until
from tests.servers import KafkaServer

pytestmark = pytest.mark.kafka
_numbers = itertools.count()

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
    """What `/readyz` says; every phase that tests wait for is a ready one."""
    status, body = daemon.get("/readyz")
    found: str = json.loads(body)["phase"]
    assert status == 200 or found not in ("standby", "learning")
    return found


def stands_by(daemon: Daemon) -> Daemon:
    until(lambda: phase(daemon) == "standby", "the daemon to stand by")
    daemon.until_says("joining the other daemons")
    return daemon


def metric(daemon: Daemon, name: str) -> float:
    lines = daemon.get("/metrics")[1].splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"streamtrain_{name} ")))


def joined(world: World, count: int) -> None:
    """Waits until the group has so many members, and is at rest."""

    async def members() -> int:
        async with world.kafka.admin() as admin:
            (group,) = await admin.describe_consumer_groups([f"{world.topic}-owners"])
            _, _, state, _, _, found, *_ = group.groups[0]
            return len(found) if state == "Stable" else -1

    until(lambda: asyncio.run(members()) == count, f"{count} members of the group")


def test_a_standby_takes_over_when_the_owner_is_killed_and_again_when_it_is_terminated(world: World) -> None:
    world.produce(500)
    first = world.daemon()
    world.learned(500)
    second = stands_by(world.daemon())
    joined(world, 2)
    assert (metric(first, "owner"), metric(second, "owner")) == (1, 0)
    first.kill()
    world.produce(300)
    world.learned(800)
    assert phase(second) == "learning" and metric(second, "owner") == 1
    assert metric(second, "takeover_seconds") > 0

    # A standby that joins does not disturb: the owner goes on, with the epochs that it would have written.
    third = stands_by(world.daemon())
    fourth = stands_by(world.daemon())
    joined(world, 3)
    world.produce(100)
    world.learned(900)
    until(
        lambda: (head := world.head) and metric(third, "standby_epoch") == head.epoch,
        "the standby to have the head",
    )
    assert second.text.count("took over at epoch") == 1 and phase(second) == "learning"
    fourth.kill()

    # One that is asked to stop leaves at once; nobody waits for a timeout.
    assert second.stop() == 0, second.text
    world.produce(100)
    world.learned(1000)
    assert "took over at epoch" in third.text
    assert third.stop() == 0, third.text
    world.check(1000)
    owners = [epoch["writer"] for epoch in inspected(world.log)["lineage"]]
    assert len({writer for writer, _ in itertools.groupby(owners)}) == len(list(itertools.groupby(owners)))


def test_a_paused_owner_that_wakes_is_fenced(world: World) -> None:
    world.produce(200)
    owner = world.daemon()
    world.learned(200)
    standby = stands_by(world.daemon())
    joined(world, 2)
    # Paused while it learns: it wakes with samples that are not durable.
    world.produce(5000)
    until(lambda: (head := world.head) and head.samples_total > 200, "it to learn")
    owner.signal(signal.SIGSTOP)
    standby.until_says("took over at epoch")
    world.learned(5200)
    owner.signal(signal.SIGCONT)
    world.produce(100)
    assert owner.wait() == 3, owner.text
    assert "Fenced" in owner.text
    world.learned(5300)
    assert "took the lock of" in standby.text
    assert standby.stop() == 0, standby.text
    world.check(5300)


def test_without_a_log_one_begins_it_and_the_other_follows_and_what_cannot_work_is_told(world: World) -> None:
    both = [world.daemon(), world.daemon()]
    world.produce(200)
    world.learned(200)
    until(lambda: sorted(map(phase, both)) == ["learning", "standby"], "one owner, one standby")
    joined(world, 2)

    impatient = world.daemon(STREAMTRAIN__FAILOVER__SESSION_TIMEOUT_S="3")
    stranger = world.daemon(STREAMTRAIN__LOG__PATH=str(world.folder / "other"))
    assert impatient.wait() == 2, impatient.text
    assert "failover.session_timeout_s = 3: the broker does not allow it" in impatient.text
    assert stranger.wait() == 2, stranger.text
    assert "let all daemons of a model share one log.path" in stranger.text

    world.produce(100)
    world.learned(300)
    for daemon in both:
        assert daemon.stop() == 0, daemon.text
    world.check(300)


async def test_a_group_that_cannot_be_asked_is_told_with_the_reason(
    kafka: KafkaServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The broker of the tests speaks no TLS: to a client it looks as one that refuses it."""
    connection = KafkaConnection(
        bootstrap_servers=kafka.bootstrap_servers, security_protocol="SSL", request_timeout_s=5
    )
    settings = FailoverSettings(group_id="refused")
    member = GroupMember(connection, "t", settings, Candidate("model", "host/1", lambda: 0))
    running = asyncio.create_task(member.run())
    async with asyncio.timeout(30):
        while not (told := [r.getMessage() for r in caplog.records if r.name == "consumers.kafka.group"]):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await member.leave()
    assert (
        told[0].startswith("group refused does not answer, trying on: ")
        and "Unable to bootstrap" not in told[0]
    )
    assert f"{kafka.bootstrap_servers}: ConnectionReset" in told[0]
    assert f"(Kafka at {kafka.bootstrap_servers}: check" in told[0]
