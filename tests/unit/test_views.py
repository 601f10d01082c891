"""The followers of the log: which failures they outlive, which stop the daemon, and what the end waits for."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from streamtrain import views as module
from streamtrain.errors import (
    CorruptRecord,
    ExportError,
    LogError,
    StoreRefused,
    StoreUnavailable,
    StreamtrainError,
)
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.readers import Readers
from streamtrain.log.record import EpochRecord
from streamtrain.log.settings import LogSettings
from streamtrain.metrics import Metrics
from streamtrain.views import Head, Views, fold_is_due
from tests.reference_log import append_epochs


def record(epoch: int) -> EpochRecord:
    return EpochRecord(epoch, "", 0, 0, 0, 0, {"p": epoch * 10}, {}, {}, {})


class Failing:
    """Raises what it was given, one at a time, then works."""

    def __init__(self, errors: Iterable[BaseException] = ()) -> None:
        self.errors = deque(errors)
        self.epochs: list[int] = []

    def work(self, epoch: int) -> int:
        if self.errors:
            raise self.errors.popleft()
        self.epochs.append(epoch)
        return epoch


class Applier(Failing):
    @property
    def status(self) -> SimpleNamespace:
        return SimpleNamespace(applied_epoch=self.epochs[-1] if self.epochs else None)

    async def catch_up(self, epoch: int) -> int:
        return self.work(epoch)


class Source(Failing):
    lag = 7

    async def committed(self, positions: dict[str, int]) -> None:
        self.work(positions["p"])

    def lag_records(self) -> dict[str, int]:
        return {"p": self.lag}


class Runner(Failing):
    """An exporter's runner at the head that the test sets."""

    def __init__(self, errors: Iterable[BaseException] = ()) -> None:
        super().__init__(errors)
        self.head = 0
        self.status = SimpleNamespace(position=None, last_bytes=0, bytes_total=0)

    def catch_up(self, stop: Callable[[], bool]) -> int:
        position = SimpleNamespace(epoch=self.work(self.head))
        self.status = SimpleNamespace(
            position=position, last_bytes=5, bytes_total=self.status.bytes_total + 5
        )
        return self.head


class Following:
    """Views of fakes, running."""

    def __init__(self, applier: Applier, source: Source, runner: Runner, log: Any, **settings: Any) -> None:
        self.metrics, self.head, self.runner, self.source = Metrics(), Head(record(0)), runner, source
        chosen = LogSettings(**({"path": "nowhere"} | settings))
        self.views = Views(chosen, log, self.head, source, applier, {"deltas": runner}, self.metrics)  # type: ignore[arg-type,dict-item]
        self.group = asyncio.TaskGroup()

    def move(self, epoch: int) -> None:
        self.runner.head = epoch
        self.head.move(record(epoch))

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"streamtrain_{name}", labels)


@contextlib.asynccontextmanager
async def following(
    *,
    applier: Applier | None = None,
    source: Source | None = None,
    runner: Runner | None = None,
    log: Any = None,
    **settings: Any,
) -> AsyncIterator[Following]:
    log = log or Bases([])
    log.readers = Readers(Path("nowhere"))
    made = Following(
        applier or Applier(),
        source or Source(),
        runner or Runner(),
        log,
        **settings,
    )
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        tasks = made.views.start(group)
        yield made
        for task in tasks:
            task.cancel()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_PAUSE_FIRST_S", "_PAUSE_MAX_S", "_FOLD_PAUSE_FIRST_S", "_FOLD_PAUSE_MAX_S"):
        monkeypatch.setattr(module, name, 0.001)


async def test_waiting_for_the_head_ends_when_it_is_newer() -> None:
    head = Head(record(3))
    waiting = asyncio.create_task(head.beyond(4))
    for epoch in (3, 4):
        head.move(record(epoch))
        await asyncio.sleep(0)
        assert not waiting.done()
    head.move(record(6))
    await asyncio.wait_for(waiting, 30)
    await head.beyond(5)


async def test_every_view_follows_the_head_and_the_end_waits_for_all() -> None:
    applier, source = Applier(), Source()
    async with following(applier=applier, source=source) as made:
        made.move(3)
        await made.views.finish(30)
        assert applier.epochs[-1] == 3 and source.epochs[-1] == 30
        assert made.value("store_applied_epoch") == 3
        assert made.value("export_epoch", exporter="deltas") == 3
        assert made.value("export_bytes", exporter="deltas") == 5
        assert made.value("export_written_bytes_total", exporter="deltas") % 5 == 0
        assert made.value("lag_records", partition="p") == 7


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def test_it_shows_how_late_each_view_is_how_old_what_is_learned_and_what_room_the_log_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "_WATCH_S", 0.001)
    away = Applier([StoreUnavailable("away")] * 1_000_000)
    async with following(applier=away, path=str(tmp_path)) as made:

        def shown(name: str, **labels: str) -> float:
            return made.value(name, **labels) or 0.0

        made.runner.head = 4
        made.head.move(replace(record(4), record_time_ms=(1_000, int(time.time() * 1000) - 90_000)))
        await until(lambda: shown("view_lag_seconds", view="store") > 0.05)
        await until(lambda: made.value("view_lag_epochs", view="deltas") == 0)
        assert made.value("view_lag_seconds", view="deltas") == 0
        assert made.value("view_lag_epochs", view="store") == 5  # The genesis too: nothing was applied yet.
        assert shown("lag_seconds") >= 90
        # An epoch without samples changes nothing; where no record waits, nothing is late.
        made.move(5)
        made.source.lag = 0
        await until(lambda: made.value("lag_seconds") == 0)
        await until(lambda: shown("log_disk_size_bytes") > 0)
        assert 0 < shown("log_disk_free_bytes") <= shown("log_disk_size_bytes")


@pytest.mark.parametrize(
    "error", [StoreUnavailable("away"), ExportError("full"), LogError("cannot read"), OSError(5, "broken")]
)
async def test_a_view_that_fails_is_tried_again_and_holds_up_nobody(error: Exception) -> None:
    applier, runner = Applier([error] * 3), Runner([error] * 3)
    async with following(applier=applier, runner=runner) as made:
        made.move(2)
        await made.views.finish(30)
        assert applier.epochs[-1] == 2 and runner.epochs[-1] == 2
        assert made.value("store_errors_total") == 3
        assert made.value("export_errors_total", exporter="deltas") == 3


async def test_a_source_that_trips_over_the_mirror_is_named_and_holds_up_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = Source([KeyError("p")])
    async with following(source=source) as made:
        made.move(2)
        await made.views.finish(30)
    assert source.epochs[-1] == 20 and "source 'Source': committed failed: KeyError: 'p'" in caplog.text


@pytest.mark.parametrize("error", [StoreRefused("another model"), CorruptRecord("epoch 3: damaged")])
async def test_what_only_a_person_can_mend_stops_the_daemon(error: StreamtrainError) -> None:
    with pytest.raises(ExceptionGroup) as raised:
        async with following(applier=Applier([error])) as made:
            await made.views.finish(30)
    assert raised.value.exceptions == (error,)


async def test_the_end_does_not_wait_for_ever_for_a_view_that_is_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with following(applier=Applier([StoreUnavailable("away")] * 100_000)) as made:
        made.move(1)
        await made.views.finish(0.05)
    assert "stopping with store behind the log" in caplog.text


async def test_an_export_in_hand_is_told_to_stop_when_the_view_is_cancelled() -> None:
    entered, stopped = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    class Slow(Runner):
        def catch_up(self, stop: Callable[[], bool]) -> int:
            loop.call_soon_threadsafe(entered.set)
            while not stop():
                pass
            stopped.set()
            return super().catch_up(stop)

    async with following(runner=Slow()):
        await entered.wait()
    assert await asyncio.to_thread(stopped.wait, 30)


class Bases:
    """A log that answers what it was given, one at a time; `exhausted` once it has given the last one."""

    def __init__(self, *answers: Any, base_bytes: int = 0, epoch_bytes: int = 0) -> None:
        self._answers, self._base_bytes, self._epoch_bytes = deque(answers), base_bytes, epoch_bytes
        self.exhausted = threading.Event()
        self._looking, self._looked_at = threading.Condition(), -1

    def bases(self) -> list[int]:
        answer = self._answers[0]
        if len(self._answers) == 1:
            self.exhausted.set()
        else:
            self._answers.popleft()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def base_bytes(self, epoch: int) -> int:
        return self._base_bytes

    def epochs_bytes(self, epochs: Iterable[int]) -> int:
        found = list(epochs)
        with self._looking:
            self._looked_at = max(self._looked_at, *found)
            self._looking.notify_all()
        return self._epoch_bytes * len(found)

    def until_looked_at(self, epoch: int) -> None:
        with self._looking:
            assert self._looking.wait_for(lambda: self._looked_at >= epoch, 30)


async def test_a_fold_that_cannot_be_started_is_tried_again_and_training_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    log = Bases([], [], [], [100])
    async with following(log=log, base_every_epochs=1) as made:
        made.move(1)
        assert await asyncio.to_thread(log.exhausted.wait, 30)
        await made.views.finish(30)
    assert "folding a base failed, it is tried again" in caplog.text


@pytest.mark.parametrize(
    ("base_mib", "epochs", "epochs_mib", "due"),
    [
        (2000, 299, 500, False),
        (2000, 299, 501, True),
        (2000, 300, 1, True),
        (0, 1, 256, False),
        (0, 1, 257, True),
    ],
)
def test_a_base_is_due_after_enough_epochs_or_when_they_hold_their_share_of_its_bytes_and_are_worth_it(
    base_mib: int, epochs: int, epochs_mib: int, due: bool
) -> None:
    settings = LogSettings(path="nowhere", base_every_epochs=300, base_share=0.25)
    assert fold_is_due(settings, base_mib << 20, epochs, epochs_mib << 20) is due


async def test_what_epochs_hold_is_added_up_until_a_fold_is_due() -> None:
    log = Bases([100], base_bytes=2000 << 20, epoch_bytes=100 << 20)
    async with following(log=log, base_share=0.25) as made:
        due = asyncio.create_task(made.views._until_fold_is_due(100))
        for epoch in range(101, 107):
            assert not due.done()
            made.move(epoch)
            await asyncio.to_thread(log.until_looked_at, epoch)
        await asyncio.wait_for(due, 30)


async def test_a_fold_that_fails_says_why(caplog: pytest.LogCaptureFixture) -> None:
    log = Bases([], [100])
    async with following(log=log, base_every_epochs=1) as made:
        made.move(1)
        assert await asyncio.to_thread(log.exhausted.wait, 30)
    assert "there is no epoch log in" in caplog.text


async def test_bases_that_cannot_be_listed_for_a_while_do_not_stop_the_daemon() -> None:
    log = Bases(LogError("cannot read"), LogError("cannot read"), [100])
    async with following(log=log):
        assert await asyncio.to_thread(log.exhausted.wait, 30)


async def test_views_are_registered_before_a_fold_collects_and_its_warnings_are_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = EpochLog.create(tmp_path / "log", "m", {})
    (log.path / "readers" / "garbage.json").write_bytes(b"")
    append_epochs(log, 4)
    log.register("slow", 0, kind="follower")
    views = Views(
        LogSettings(path=str(log.path), keep_epochs=1, hold_epochs_max=2),
        log,
        Head(record(4)),
        Source(),  # type: ignore[arg-type]
        SimpleNamespace(status=SimpleNamespace(applied_epoch=2)),  # type: ignore[arg-type]
        {},
        Metrics(),
    )
    await views._fold()
    assert log.epochs() == [3, 4], "the store holds back what follows epoch 2, the slow one nothing"
    assert caplog.text.count("reader slow (follower") == 1
    assert caplog.text.count("is no registration") == 1
    await views._fold()
    assert caplog.text.count("reader slow (follower") == 1
