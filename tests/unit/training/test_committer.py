"""The writer thread: what is durable is told in order, what cannot be written is never lost in silence."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from streamtrain.errors import Fenced, LogFull
from streamtrain.log.record import EpochRecord
from streamtrain.metrics import Metrics
from streamtrain.training import committer as module
from streamtrain.training.committer import Committer
from tests.fakes import ListLog


def record(epoch: int) -> EpochRecord:
    return EpochRecord(epoch, "", 0, 1, 1, 1, {"p": epoch}, {}, {}, {}, watermark_ms=5000)


class Writing:
    """A committer on a log in memory, and what it told."""

    def __init__(self) -> None:
        self.log, self.metrics = ListLog(), Metrics()
        self.told: list[tuple[int, str]] = []
        self.committer = Committer(self.log, "digest 0", self._tell, self.metrics)  # type: ignore[arg-type]

    def _tell(self, record: EpochRecord, digest: str) -> None:
        self.told.append((record.epoch, digest))

    def value(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"streamtrain_{name}")


@pytest.fixture
def writing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Writing]:
    monkeypatch.setattr(module, "_RETRY_S", 0.005)
    made = Writing()
    yield made
    made.log.gate.set()
    made.committer.close()


def test_each_record_is_chained_to_the_one_before_and_told_once_it_is_durable(writing: Writing) -> None:
    for epoch in (1, 2, 3):
        writing.committer.submit(record(epoch))
    writing.committer.drain()
    assert [r.previous for r in writing.log.records] == ["digest 0", "digest 1", "digest 2"]
    assert all(r.committed_at_ms > 0 and r.writer for r in writing.log.records)
    assert writing.told == [(1, "digest 1"), (2, "digest 2"), (3, "digest 3")]
    assert writing.value("epoch") == 3 and writing.value("watermark_timestamp_seconds") == 5
    assert (writing.value("epoch_bytes_count"), writing.value("epoch_bytes_sum")) == (3, 3000)


def test_submitting_waits_for_the_record_before(writing: Writing) -> None:
    writing.log.gate.clear()
    writing.committer.submit(record(1))
    assert writing.committer.busy
    second = threading.Thread(target=writing.committer.submit, args=(record(2),))
    second.start()
    assert second.is_alive() and writing.told == []
    writing.log.gate.set()
    second.join(30)
    writing.committer.drain()
    assert not writing.committer.busy and [epoch for epoch, _ in writing.told] == [1, 2]


def test_a_full_log_is_tried_again_until_there_is_room(writing: Writing) -> None:
    writing.log.errors.extend([LogFull("no room"), LogFull("no room")])
    seen: list[tuple[bool, float | None]] = []
    writing.log.on_attempt = lambda: seen.append((writing.committer.full, writing.value("log_full")))
    writing.committer.submit(record(1))
    writing.committer.drain()
    assert seen == [(False, 0.0), (True, 1.0), (True, 1.0)]
    assert writing.told == [(1, "digest 1")]
    assert not writing.committer.full and writing.value("log_full") == 0


def test_a_full_log_is_given_up_when_abandoned_and_the_record_was_never_told(writing: Writing) -> None:
    writing.log.errors.extend([LogFull("no room")] * 1000)
    writing.log.on_attempt = lambda: writing.log.attempts == 3 and writing.committer.abandon()
    writing.committer.submit(record(1))
    with pytest.raises(LogFull):
        writing.committer.drain()
    assert writing.told == [] and writing.log.records == []


def test_a_fence_stops_every_later_call_and_nothing_is_written_after_it(writing: Writing) -> None:
    writing.log.errors.append(Fenced("another writer"))
    writing.committer.submit(record(1))
    for call in (
        writing.committer.drain,
        lambda: writing.committer.busy,
        lambda: writing.committer.submit(record(2)),
    ):
        with pytest.raises(Fenced):
            call()
    assert writing.log.attempts == 1 and writing.told == []


def test_closing_ends_the_thread_after_the_record_in_hand(writing: Writing) -> None:
    writing.log.gate.clear()
    writing.committer.submit(record(1))
    closing = threading.Thread(target=writing.committer.close)
    closing.start()
    assert writing.told == []
    writing.log.gate.set()
    closing.join(30)
    assert writing.told == [(1, "digest 1")]
