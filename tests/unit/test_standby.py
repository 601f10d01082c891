"""Following a log warm and taking it over, in this process, with an ownership that the test hands out."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from streamtrain.config import Job
from streamtrain.errors import ConfigError, Fenced
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.fold import fold
from streamtrain.log.format import content_digest
from streamtrain.log.readers import Readers, Registration
from streamtrain.log.record import EpochRecord
from streamtrain.log.recovery import restored
from streamtrain.log.rollback import rollback
from streamtrain.ownership import Candidate, FailoverSettings
from streamtrain.recovering import Recovering
from streamtrain.restorer import Restorer
from streamtrain.service import Service
from streamtrain.sources import Chunk, SourceSettings
from streamtrain.standby import claim
from streamtrain.training.learner import Learner
from tests.fakes import ScriptedSource, chunk, job


class HandedOut:
    """An ownership that tests give and take."""

    def __init__(self) -> None:
        self.given, self.taken = asyncio.Event(), asyncio.Event()
        self.joined = self.left = False
        self.candidate: Candidate

    async def owned(self) -> None:
        self.joined = True
        await self.given.wait()

    async def lost(self) -> str:
        await self.taken.wait()
        return "other/1"

    async def close(self) -> None:
        self.left = True


class OwnedSettings(SourceSettings):
    kind: Literal["tests.unit.test_standby:OwnedSource"]


class OwnedSource(ScriptedSource):
    """A scripted source that can tell ownership."""

    Settings = OwnedSettings  # type: ignore[assignment]
    handed_out: HandedOut

    def ownership(self, settings: FailoverSettings, candidate: Candidate) -> HandedOut:
        OwnedSource.handed_out.candidate = candidate
        return OwnedSource.handed_out


@pytest.fixture(autouse=True)
def _cold(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compiles what a test steps on alone; puts the script away."""
    monkeypatch.setattr(Learner, "warm_up", lambda self: None)
    yield
    ScriptedSource.script, ScriptedSource.on_start = (), None


def followed(folder: Path) -> Job:
    """The small job, with failover."""
    return job(
        folder,
        source={"kind": "tests.unit.test_standby:OwnedSource"},
        failover={"group_id": "owners"},
    )


async def learn(folder: Path, *script: Chunk) -> None:
    """A daemon without failover learns the chunks, an epoch or more."""
    ScriptedSource.script = script
    await asyncio.wait_for(Service(job(folder), until_end=True).run(), 60)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what happens in threads sets no event
            await asyncio.sleep(0.01)


def bits(learner: Learner) -> tuple[object, ...]:
    """Everything there is, in an order of its own."""
    rows = learner.sparse.tables["main"].export()
    order = rows.ids.argsort()
    columns = (rows.ids, rows.weights, rows.slots, rows.counts, rows.last_steps)
    return (*(column[order].tobytes() for column in columns), content_digest(learner.cut()))


def follower(folder: Path) -> tuple[Learner, Restorer]:
    settings = job(folder)
    learner = Learner(settings)
    return learner, Restorer(learner, EpochLog.open(settings.log.path), sequential=False, rows=True)


def recovered(folder: Path) -> Learner:
    """What a start finds in the log."""
    learner = Learner(job(folder))
    restored(EpochLog.open(folder / "model"), lambda records: learner.restore(records, sequential=False))
    return learner


# Following


async def test_following_epoch_by_epoch_is_the_model_that_a_start_recovers(tmp_path: Path) -> None:
    await learn(tmp_path, chunk(0, 8))
    learner, restorer = follower(tmp_path)
    for first in (8, 16, 24):
        assert restorer.catch_up() is not None
        await learn(tmp_path, chunk(first, 8))
    last = restorer.catch_up()
    assert last is not None and (last.samples_total, restorer.epoch) == (
        32,
        EpochLog.open(tmp_path / "model").head(),
    )
    assert (learner.source, dict(last.positions)) == ("topic-1", {"p": 32})
    assert bits(learner) == bits(recovered(tmp_path))


async def test_a_rollback_is_followed_like_any_other_epoch(tmp_path: Path) -> None:
    await learn(tmp_path, chunk(0, 8))
    await learn(tmp_path, chunk(8, 8))
    learner, restorer = follower(tmp_path)
    restorer.catch_up()
    rollback(EpochLog.open(tmp_path / "model"), 1)
    last = restorer.catch_up()
    assert last is not None and (last.restores, last.samples_total) == (1, 8)
    assert bits(learner) == bits(recovered(tmp_path))


async def test_a_follower_begins_anew_when_what_it_needs_next_was_collected(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await learn(tmp_path, chunk(0, 8))
    learner, restorer = follower(tmp_path)
    restorer.catch_up()
    for first in (8, 16):
        await learn(tmp_path, chunk(first, 8))
    fold(tmp_path / "model")
    EpochLog.open(tmp_path / "model").collect(1)
    log = EpochLog.open(tmp_path / "model")
    for epoch in log.epochs():
        log.epoch_path(epoch).unlink()
    with caplog.at_level(logging.INFO):
        last = restorer.catch_up()
    assert "beginning anew" in caplog.text
    assert last is not None and last.samples_total == 24
    assert bits(learner) == bits(recovered(tmp_path))


async def test_a_follower_begins_anew_when_the_newest_epoch_was_lost_and_learned_again(
    tmp_path: Path,
) -> None:
    await learn(tmp_path, chunk(0, 8))
    await learn(tmp_path, chunk(8, 8))
    learner, restorer = follower(tmp_path)
    restorer.catch_up()
    log = EpochLog.open(tmp_path / "model")
    log.epoch_path(log.head() or 0).unlink()
    # Another batch under the same number, and one more.
    await learn(tmp_path, chunk(8, 5))
    again = restorer.catch_up()
    assert again is not None and again.samples_total == 13
    assert bits(learner) == bits(recovered(tmp_path))
    log = EpochLog.open(tmp_path / "model")
    log.epoch_path(log.head() or 0).unlink()
    await learn(tmp_path, chunk(8, 8))
    await learn(tmp_path, chunk(16, 8))
    again = restorer.catch_up()
    assert again is not None and again.samples_total == 24
    assert bits(learner) == bits(recovered(tmp_path))


# Taking over


async def test_a_claim_follows_a_former_owner_that_still_appends_and_then_fences_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await learn(tmp_path, chunk(0, 8))
    learner, restorer = follower(tmp_path)
    log, former = EpochLog.open(tmp_path / "model"), recovered(tmp_path)
    head = log.head()
    assert head is not None
    restorer.catch_up()
    late = dataclasses.replace(former.cut(), previous=log.digest(head), writer="former/1")
    original, calls = EpochLog.append, list[EpochRecord]()

    def append(self: EpochLog, record: EpochRecord) -> str:
        calls.append(record)
        if len(calls) == 1:
            original(EpochLog.open(log.path), late)
        return original(self, record)

    monkeypatch.setattr(EpochLog, "append", append)
    record = await claim(log, learner, restorer)
    assert record is not None and len(calls) == 2
    assert (record.epoch, record.samples, record.notes["took_over"]) == (head + 2, 0, "former/1")
    with pytest.raises(Fenced):
        original(
            EpochLog.open(log.path), dataclasses.replace(late, epoch=head + 2, previous=log.digest(head + 1))
        )


async def test_a_claim_that_comes_after_another_daemons_leaves_the_log_to_that_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await learn(tmp_path, chunk(0, 8))
    woken, restorer = follower(tmp_path)
    owner, its_restorer = follower(tmp_path)
    log, its_log = EpochLog.open(tmp_path / "model"), EpochLog.open(tmp_path / "model")
    original, paused = EpochLog.append, [True]

    def append(self: EpochLog, record: EpochRecord) -> str:
        if paused.pop() if paused else False:
            assert asyncio.run(claim(its_log, owner, its_restorer)) is not None
        return original(self, record)

    monkeypatch.setattr(EpochLog, "append", append)
    with pytest.raises(Fenced, match="before this daemon could, which was paused"):
        await claim(log, woken, restorer)
    goes_on = dataclasses.replace(owner.cut(), previous=log.digest(its_restorer.epoch), writer="owner/1")
    assert original(its_log, goes_on) == log.digest(log.head() or 0)


async def test_a_start_that_is_paused_until_its_epoch_is_collected_is_fenced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between recovering an epoch and beginning to write behind it (simulation seed 107523)."""
    await learn(tmp_path, chunk(0, 8))
    recover = Recovering.finish

    async def paused(self: Recovering, *arguments: Any) -> EpochRecord:
        record = await recover(self, *arguments)
        other, restorer = follower(tmp_path)
        log = EpochLog.open(tmp_path / "model")
        for _ in range(3):
            await claim(log, other, restorer)
        fold(log.path)
        log.collect(1)
        return record

    monkeypatch.setattr(Recovering, "finish", paused)
    with pytest.raises(Fenced, match="has gone far beyond epoch"):
        await learn(tmp_path, chunk(8, 16))


async def test_a_takeover_reads_and_writes_the_log_beside_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await learn(tmp_path, chunk(0, 8))
    learner, restorer = follower(tmp_path)
    loop, called = threading.current_thread(), set[str]()
    for name in ("append", "digest", "describe", "head"):
        original = getattr(EpochLog, name)

        def beside(*arguments: Any, name: str = name, original: Any = original) -> Any:
            assert threading.current_thread() is not loop, f"{name} holds up the loop"
            called.add(name)
            return original(*arguments)

        monkeypatch.setattr(EpochLog, name, beside)
    assert await claim(EpochLog.open(tmp_path / "model"), learner, restorer) is not None
    assert called >= {"append", "digest"}


async def test_a_standby_writes_nothing_follows_and_takes_over(tmp_path: Path) -> None:
    await learn(tmp_path, chunk(0, 8))
    handed_out = OwnedSource.handed_out = HandedOut()
    ScriptedSource.script = (chunk(16, 8),)
    service = Service(followed(tmp_path), until_end=True)
    running = asyncio.create_task(service.run())
    await until(lambda: handed_out.joined)
    assert (service._health.ready, service._health.phase) == (True, "standby")
    log = EpochLog.open(tmp_path / "model")
    (reader,) = log.readers.found()
    assert reader.kind == "standby"
    # The log is free for another to write; whoever does is followed.
    await learn(tmp_path, chunk(8, 8))
    head = log.head()
    assert head is not None
    await until(lambda: handed_out.candidate.epoch() == head)
    handed_out.given.set()
    last = await asyncio.wait_for(running, 60)
    assert last is not None and (last.samples_total, dict(last.positions)) == (24, {"p": 24})
    assert log.read(head + 1).notes["took_over"]
    assert handed_out.left and not [reader for reader in log.readers.found() if reader.kind == "standby"]


async def test_a_standby_that_is_stopped_leaves_without_a_trace(tmp_path: Path) -> None:
    await learn(tmp_path, chunk(0, 8))
    head = EpochLog.open(tmp_path / "model").head()
    handed_out = OwnedSource.handed_out = HandedOut()
    service = Service(followed(tmp_path))
    running = asyncio.create_task(service.run())
    await until(lambda: handed_out.joined)
    service.stop()
    assert await asyncio.wait_for(running, 60) is None
    log = EpochLog.open(tmp_path / "model")
    assert handed_out.left and log.head() == head and not log.readers.found()


async def test_a_standby_that_is_stopped_while_it_registers_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await learn(tmp_path, chunk(0, 8))
    OwnedSource.handed_out = HandedOut()
    service = Service(followed(tmp_path))
    loop, original = asyncio.get_running_loop(), Readers.register

    def register(self: Readers, *arguments: Any, **options: Any) -> Registration:
        # The stop arrives while the disk is slow: the start is cancelled, and its thread goes on.
        stopped = threading.Event()
        loop.call_soon_threadsafe(service.stop)
        loop.call_soon_threadsafe(loop.call_later, 0.1, stopped.set)
        assert stopped.wait(30)
        return original(self, *arguments, **options)

    monkeypatch.setattr(Readers, "register", register)
    assert await asyncio.wait_for(service.run(), 60) is None
    await loop.shutdown_default_executor()
    assert not EpochLog.open(tmp_path / "model").readers.found()


async def test_an_owner_that_another_follows_ends_fenced(tmp_path: Path) -> None:
    handed_out = OwnedSource.handed_out = HandedOut()
    handed_out.given.set()
    service = Service(followed(tmp_path))
    running = asyncio.create_task(service.run())
    await until(lambda: service._health.phase == "learning")
    handed_out.taken.set()
    with pytest.raises(Fenced, match="other/1 owns the model now"):
        await asyncio.wait_for(running, 60)
    assert handed_out.left


async def test_a_log_that_cannot_be_read_is_tried_again_and_shows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await learn(tmp_path, chunk(0, 8))
    log = EpochLog.open(tmp_path / "model")
    path = log.epoch_path(log.head() or 0)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    handed_out = OwnedSource.handed_out = HandedOut()
    service = Service(followed(tmp_path))
    running = asyncio.create_task(service.run())
    await until(lambda: handed_out.joined)
    assert (service._health.ready, service._health.phase) == (False, "standby, behind")
    assert "cannot follow the log, trying on" in caplog.text
    path.write_bytes(whole)
    await until(lambda: service._health.ready)
    service.stop()
    await asyncio.wait_for(running, 60)


# Settings


def test_failover_needs_a_source_that_tells_ownership(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"failover\.group_id: source\.kind = .*failover needs kafka"):
        job(tmp_path, failover={"group_id": "owners"})


def test_failover_needs_a_group_of_its_own(tmp_path: Path) -> None:
    source = {"kind": "kafka", "topic": "clicks", "group_id": "one"}
    with pytest.raises(ConfigError, match=r"'one' is source\.group_id as well"):
        job(tmp_path, source=source, failover={"group_id": "one"})


def test_one_lost_heartbeat_must_not_cost_the_model(tmp_path: Path) -> None:
    source = {"kind": "kafka", "topic": "clicks"}
    failover = {"group_id": "one", "session_timeout_s": 6, "heartbeat_interval_s": 3}
    with pytest.raises(ConfigError, match="must be at most a third of session_timeout_s = 6"):
        job(tmp_path, source=source, failover=failover)
