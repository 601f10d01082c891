"""Reading records ahead, the base even before recovery begins, and telling where the time of a recovery goes."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from streamtrain.errors import CorruptRecord
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.fold import fold
from streamtrain.log.format import content_digest
from streamtrain.log.headstart import Headstart
from streamtrain.log.reader import LogReader
from streamtrain.log.record import EpochRecord
from streamtrain.log.recovery import Timed, ahead, recover
from tests.reference_log import append_epochs, epoch_record


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


def based(directory: Path) -> EpochLog:
    """A log with epochs 0 to 4 and the base of epoch 2."""
    log = EpochLog.create(directory / "log", "clicks", {"seed": 1})
    append_epochs(log, 2)
    fold(log.path)
    append_epochs(log, 4)
    return log


def finished(path: Path) -> Headstart:
    """One that has read what it reads."""
    headstart = Headstart(path)
    for thread in threading.enumerate():
        if thread.name == "headstart":
            thread.join()
    return headstart


def same(found: Iterable[EpochRecord], expected: Iterable[EpochRecord]) -> bool:
    return list(map(content_digest, found)) == list(map(content_digest, expected))


def test_a_base_that_is_read_beforehand_recovers_the_same_records_and_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, read = based(tmp_path), []
    expected = list(recover(log))
    real = LogReader.read_base

    def counted(reader: LogReader, epoch: int) -> EpochRecord:
        read.append(epoch)
        return real(reader, epoch)

    monkeypatch.setattr(LogReader, "read_base", counted)
    headstart = Headstart(log.path)
    assert same(recover(log, headstart=headstart), expected)
    assert read == [2]
    assert same(recover(log, headstart=headstart), expected), "a second recovery reads for itself"


def test_a_newer_base_than_the_one_read_beforehand_is_the_one_that_counts(tmp_path: Path) -> None:
    log = based(tmp_path)
    headstart = finished(log.path)
    fold(log.path)
    assert [record.epoch for record in recover(log, headstart=headstart)] == [4]


def test_a_damaged_base_is_told_of_by_recovery_as_ever(tmp_path: Path) -> None:
    log = based(tmp_path)
    content = bytearray(log.base_path(2).read_bytes())
    content[-1] ^= 1
    log.base_path(2).write_bytes(content)
    with pytest.raises(CorruptRecord) as expected:
        next(recover(log))
    with pytest.raises(CorruptRecord) as found:
        next(recover(log, headstart=Headstart(log.path)))
    assert str(found.value) == str(expected.value)


def test_a_log_that_is_not_there_when_its_base_is_to_be_read_is_no_fault(tmp_path: Path) -> None:
    headstart = finished(tmp_path / "log")
    log = based(tmp_path)
    assert same(recover(log, headstart=headstart), recover(log))


def test_a_base_of_another_model_that_stood_there_before_is_not_taken(tmp_path: Path) -> None:
    other = based(tmp_path)
    headstart = finished(other.path)
    shutil.rmtree(other.path)
    log = EpochLog.create(other.path, "clicks", {"seed": 1})
    append_epochs(log, 2, bad_samples=7)
    fold(log.path)
    (base,) = recover(log, headstart=headstart)
    assert content_digest(base) == content_digest(log.read_base(2))
