"""The daemon in this process, on a scripted source: how it starts, stops and fails in every phase."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamtrain.config import Job
from streamtrain.errors import (
    Fenced,
    LogFull,
    OffsetOutOfRange,
    SourceError,
    SourceUnavailable,
    TableFull,
    TooManyBadSamples,
)
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.fold import fold
from streamtrain.log.record import EpochRecord
from streamtrain.service import Service, _gravest
from streamtrain.sources import Chunk
from streamtrain.training.learner import Learner
from tests.fakes import ScriptedSource, chunk, job


@pytest.fixture(autouse=True)
def _cold(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compiles what a test steps on alone; puts the script away."""
    monkeypatch.setattr(Learner, "warm", classmethod(lambda cls, job: cls(job)))
    yield
    ScriptedSource.script, ScriptedSource.on_start = (), None


async def run(
    job: Job,
    *script: Chunk | BaseException | asyncio.Event,
    until_end: bool = False,
    on_commit: Callable[[Service, EpochRecord], None] = lambda *_: None,
) -> EpochRecord | None:
    """Runs a daemon to its end."""
    ScriptedSource.script = script
    service = Service(job, until_end=until_end, on_commit=lambda record: on_commit(service, record))
    return await asyncio.wait_for(service.run(), 60)


async def test_a_profile_shows_every_stage_and_the_phases_of_a_step(tmp_path: Path) -> None:
    ScriptedSource.script = (chunk(0, 20), chunk(20, 5))
    service = Service(job(tmp_path), until_end=True, profile=tmp_path / "trace.json")
    await asyncio.wait_for(service.run(), 60)
    events = json.loads((tmp_path / "trace.json").read_text())
    tracks = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    found = {(tracks[e["tid"]], e["name"]) for e in events if e["ph"] == "X"}
    assert {(stage, stage) for stage in ("read", "decode", "train", "commit")} < found
    assert {("train", phase) for phase in ("cut", "sparse forward", "dense", "sparse backward")} < found
    assert [line.split()[0] for line in service.report[1:4]] == ["read", "decode", "prefetch"]


async def test_a_run_to_the_end_learns_all_and_the_next_goes_on(tmp_path: Path) -> None:
    first = await run(job(tmp_path), chunk(0, 20), chunk(20, 5), until_end=True)
    assert first is not None and (first.samples_total, dict(first.positions)) == (25, {"p": 25})
    assert ScriptedSource.made.closed and ScriptedSource.made.mirrored[-1] == {"p": 25}
    second = await run(job(tmp_path), chunk(25, 8), until_end=True)
    assert second is not None and (second.samples_total, dict(second.positions)) == (33, {"p": 33})
    assert ScriptedSource.made.started_at == ({"p": 25}, "topic-1")


async def test_the_identity_of_the_source_outlives_a_restart_at_a_base(tmp_path: Path) -> None:
    """A base has no notes; forgetting the identity would let a recreated topic pass."""
    await run(job(tmp_path), chunk(0, 8), until_end=True)
    fold(tmp_path / "model")
    await run(job(tmp_path), chunk(8, 8), until_end=True)
    assert ScriptedSource.made.started_at == ({"p": 8}, "topic-1")
    log = EpochLog.open(tmp_path / "model")
    assert log.read(log.head() or 0).notes["source"] == "topic-1"


async def test_sigterm_commits_what_was_learned(tmp_path: Path) -> None:
    def stop(service: Service, record: EpochRecord) -> None:
        if record.samples_total == 16:
            os.kill(os.getpid(), signal.SIGTERM)

    last = await run(job(tmp_path), chunk(0, 16), on_commit=stop)
    assert last is not None and last.samples_total == 16


@pytest.mark.parametrize("learned", [False, True])
async def test_sigterm_ends_a_start_that_waits_for_the_source(tmp_path: Path, learned: bool) -> None:
    if learned:
        await run(job(tmp_path), chunk(0, 8), until_end=True)

    async def never() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()

    ScriptedSource.on_start = never
    assert await run(job(tmp_path)) is None
    assert ScriptedSource.made.closed


async def test_cancelling_a_start_is_not_taken_for_a_stop(tmp_path: Path) -> None:
    entered = asyncio.Event()

    async def never() -> None:
        entered.set()
        await asyncio.Event().wait()

    ScriptedSource.on_start = never
    running = asyncio.create_task(Service(job(tmp_path)).run())
    await entered.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ScriptedSource.made.closed


async def test_a_recovery_of_many_epochs_ends_soon_when_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"log": {"path": str(tmp_path / "model"), "epoch_interval_s": 0.05}}
    for first in (0, 8, 16):
        await run(job(tmp_path, **settings), chunk(first, 8), until_end=True)
    service, read = Service(job(tmp_path)), []
    original = EpochLog.read

    def reading(log: EpochLog, epoch: int) -> EpochRecord:
        read.append(epoch)
        loop.call_soon_threadsafe(service.stop)
        while not service._stopping.is_set():
            pass
        return original(log, epoch)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(EpochLog, "read", reading)
    assert await asyncio.wait_for(service.run(), 60) is None
    await loop.shutdown_default_executor()
    assert read == [0]


async def test_a_source_that_is_away_for_a_while_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamtrain.pipeline._UNAVAILABLE_PAUSE_S", 0.0)
    last = await run(job(tmp_path), SourceUnavailable("away"), chunk(0, 8), until_end=True)
    assert last is not None and last.samples_total == 8


async def test_a_source_that_fails_stops_the_daemon_after_a_commit(tmp_path: Path) -> None:
    learned = asyncio.Event()
    with pytest.raises(OffsetOutOfRange, match="gone"):
        await run(
            job(tmp_path),
            chunk(0, 8),
            learned,
            OffsetOutOfRange("gone"),
            on_commit=lambda _, record: learned.set() if record.samples_total == 8 else None,
        )
    log = EpochLog.open(tmp_path / "model")
    assert log.read(log.head() or 0).samples_total == 8


async def test_a_flood_of_bad_records_stops_the_daemon_and_is_the_fault_that_is_told(tmp_path: Path) -> None:
    with pytest.raises(TooManyBadSamples):
        await run(job(tmp_path), chunk(0, [b"{"] * 100), until_end=True)


async def test_a_full_table_stops_the_daemon_while_the_feed_waits_for_room(tmp_path: Path) -> None:
    tables = {"main": {"dim": 1, "rows_max": 3}}
    with pytest.raises(TableFull, match="rows_max = 3"):
        await run(job(tmp_path, tables=tables), *[chunk(first, 8) for first in range(0, 800, 8)])
    assert ScriptedSource.made.closed


async def test_a_fault_is_told_though_the_log_has_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record that finds no room is given up at the deadline: it must not hold up the end for ever."""
    monkeypatch.setattr("streamtrain.training.committer._RETRY_S", 0.01)
    full = asyncio.Event()
    loop, original = asyncio.get_running_loop(), EpochLog.append

    def append(log: EpochLog, record: EpochRecord) -> str:
        if record.epoch == 0:
            return original(log, record)
        loop.call_soon_threadsafe(full.set)
        raise LogFull("no room")

    monkeypatch.setattr(EpochLog, "append", append)
    training = {"batch_size": 8, "linger_ms": 1, "stop_timeout_s": 0.2}
    with pytest.raises(SourceError, match="gone for good"):
        await run(job(tmp_path, training=training), chunk(0, 8), full, SourceError("gone for good"))


async def test_stop_shares_one_deadline_between_the_log_and_the_views(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    async def finish(_: Any, timeout_s: float) -> None:
        waits.append(timeout_s)

    monkeypatch.setattr("streamtrain.views.Views.finish", finish)
    clock = [0.0]
    loop = asyncio.get_running_loop()
    service = Service(job(tmp_path, training={"stop_timeout_s": 30.0}))
    ScriptedSource.script = (chunk(0, 64),)

    def committed(record: EpochRecord) -> None:
        if record.epoch == 1:
            service.stop()
            # The last epoch took ten seconds.
            original = loop.time
            monkeypatch.setattr(loop, "time", lambda: original() + clock[0])
            clock[0] = 10.0

    service._on_commit = committed
    await asyncio.wait_for(service.run(), 60)
    assert len(waits) == 1 and 0 < waits[0] <= 20.0


def test_being_fenced_is_the_gravest_fault_whatever_came_first(caplog: pytest.LogCaptureFixture) -> None:
    fenced, other = Fenced("another writer"), SourceError("gone")
    assert _gravest([other, fenced]) is fenced
    assert "also failed: SourceError: gone" in caplog.text
    assert _gravest([other, TableFull("full")]) is other
