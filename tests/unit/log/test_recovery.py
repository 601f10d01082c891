"""Reading one record ahead, and telling where the time of a recovery goes."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from streamtrain.errors import CorruptRecord
from streamtrain.log.record import EpochRecord
from streamtrain.log.recovery import Timed, ahead
from tests.reference_log import epoch_record


def numbered(count: int) -> Iterator[EpochRecord]:
    return (epoch_record(epoch, "") for epoch in range(count))


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_reading_ahead_yields_the_same_records_in_order(count: int) -> None:
    assert [record.epoch for record in ahead(numbered(count))] == list(range(count))


@pytest.mark.parametrize("depth", [1, 3])
def test_records_are_read_while_those_before_them_are_worked_on(depth: int) -> None:
    read = [threading.Event() for _ in range(8)]

    def reading() -> Iterator[EpochRecord]:
        for record in numbered(8):
            read[record.epoch].set()
            yield record

    for record in ahead(reading(), depth):
        seen = record.epoch + depth
        if seen < 8:
            assert read[seen].wait(30), "the reader waits for the worker"
        assert not any(event.is_set() for event in read[seen + 1 :]), "further ahead than it may be"


def test_a_damaged_record_is_told_of_behind_those_before_it() -> None:
    def damaged() -> Iterator[EpochRecord]:
        yield from numbered(2)
        raise CorruptRecord("epoch 2")

    found = []
    with pytest.raises(CorruptRecord, match="epoch 2"):
        for record in ahead(damaged()):
            found.append(record.epoch)
    assert found == [0, 1]


def test_the_reader_ends_with_who_reads() -> None:
    records = ahead(numbered(1000))
    next(records)
    assert any(thread.name.startswith("recovery") for thread in threading.enumerate())
    records.close()  # type: ignore[attr-defined]
    assert not any(thread.name.startswith("recovery") for thread in threading.enumerate())


def test_time_is_told_of_the_first_record_and_of_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.0, 1.0, 3.0, 3.5, 4.0, 4.5, 5.0])
    monkeypatch.setattr("streamtrain.log.recovery.perf_counter", lambda: next(seconds))
    timed = Timed(numbered(3))
    assert [record.epoch for record in timed] == [0, 1, 2]
    assert (timed.waited_s, timed.worked_s) == ([1.0, 1.0], [2.0, 1.0])
    assert str(timed) == (
        "3 records: the first read in 1.000 s, loaded in 2.000 s; the rest waited for 1.000 s, loaded in 1.000 s"
    )
