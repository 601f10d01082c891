"""Followers share what one of them has read and checked."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from streamtrain.errors import CorruptRecord
from streamtrain.log.record import EpochRecord
from streamtrain.log.shared import SharedReads


@dataclass
class CountingLog:
    """Says which epochs it was asked for; a reading takes until `gate` is open."""

    gate: threading.Event
    damaged: set[int] = field(default_factory=set)
    asked: list[int] = field(default_factory=list)
    digests: dict[int, str] = field(default_factory=dict)

    def read(self, epoch: int) -> EpochRecord:
        self.asked.append(epoch)
        assert self.gate.wait(30)
        if epoch in self.damaged:
            raise CorruptRecord(f"epoch {epoch}")
        return EpochRecord(epoch, "", epoch, epoch + 1, 0, 0, {}, {}, {}, {})

    def head(self) -> int:
        return 7

    def bases(self) -> list[int]:
        return [3]

    def read_base(self, epoch: int) -> EpochRecord:
        return self.read(-epoch)

    def digest(self, epoch: int) -> str:
        return self.digests.get(epoch, f"digest {epoch}")


def log(*, is_open: bool = True) -> CountingLog:
    gate = threading.Event()
    if is_open:
        gate.set()
    return CountingLog(gate)


def test_followers_that_ask_at_once_wait_for_one_reading() -> None:
    shared = SharedReads(slow := log(is_open=False))
    with ThreadPoolExecutor(3) as threads:
        readings = [threads.submit(shared.read, 1) for _ in range(3)]
        slow.gate.set()
        first, *others = [reading.result(30) for reading in readings]
    assert slow.asked == [1] and all(record is first for record in others)


def test_followers_that_are_apart_read_for_themselves() -> None:
    shared = SharedReads(counting := log())
    assert [shared.read(epoch).epoch for epoch in (1, 2, 1, 1, 2)] == [1, 2, 1, 1, 2]
    assert counting.asked == [1, 2, 1, 2]


def test_a_reading_that_failed_is_tried_again_and_leaves_what_was_read() -> None:
    shared = SharedReads(counting := log())
    counting.damaged = {2}
    shared.read(1)
    for _ in range(2):
        with pytest.raises(CorruptRecord):
            shared.read(2)
    counting.damaged = set()
    assert shared.read(1).epoch == 1 and shared.read(2).epoch == 2
    assert counting.asked == [1, 2, 2, 2]


def test_another_epoch_of_the_same_number_is_read_anew() -> None:
    shared = SharedReads(counting := log())
    before = shared.read(1)
    counting.digests = {1: "another"}
    assert shared.read(1) is not before
    assert counting.asked == [1, 1]


def test_all_else_is_the_logs_own() -> None:
    shared = SharedReads(log())
    assert (shared.head(), shared.bases(), shared.digest(5)) == (7, [3], "digest 5")
    assert shared.read_base(3).epoch == -3
