"""The buffer between a source's thread and the daemon's loop."""

from __future__ import annotations

import asyncio
import dataclasses
import threading

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.handover import Handover
from streamtrain.errors import OffsetOutOfRange, SourceUnavailable
from streamtrain.sources import Chunk, DataLoss, Gap


def chunk(first: int, records: int, size: int = 1, partition: str = "p") -> Chunk:
    offsets = np.arange(first, first + records)
    return Chunk(partition, first, first + max(1, records), offsets, offsets, [b"x" * size] * records)


async def test_chunks_come_in_order_from_another_thread() -> None:
    room = threading.Event()
    handover = Handover(10, 1000, room.set)

    def produce() -> None:
        for first in range(0, 300, 3):
            while not handover.has_room():
                room.clear()
                if not handover.has_room():
                    room.wait(5)
            handover.put(chunk(first, 3))
            assert handover.records < 10 + 3
        handover.end()

    thread = threading.Thread(target=produce)
    thread.start()
    firsts = []
    while (got := await handover.get()) is not None:
        assert isinstance(got, Chunk)
        firsts.append(got.first)
    thread.join()
    assert firsts == list(range(0, 300, 3))


@pytest.mark.parametrize(("records_max", "bytes_max"), [(3, 1000), (100, 30)])
async def test_room_ends_at_either_bound_and_comes_back(records_max: int, bytes_max: int) -> None:
    told: list[None] = []
    handover = Handover(records_max, bytes_max, lambda: told.append(None))
    for first in range(3):
        assert handover.has_room()
        handover.put(chunk(first, 1, size=10))
    assert not handover.has_room()
    await handover.get()
    assert (handover.has_room(), len(told)) == (True, 1)
    await handover.get()
    assert len(told) == 1


async def test_chunks_without_records_count_against_the_bound() -> None:
    handover = Handover(2, 1000, lambda: None)
    handover.put(chunk(0, 0))
    handover.put(chunk(1, 0))
    assert not handover.has_room()


async def test_a_final_error_comes_after_the_chunks_and_stays() -> None:
    handover = Handover(10, 1000, lambda: None)
    handover.put(chunk(0, 1))
    handover.fail(OffsetOutOfRange("gone"), final=True)
    assert await handover.get() is not None
    for _ in range(2):
        with pytest.raises(OffsetOutOfRange):
            await handover.get()


async def test_a_passing_error_comes_once_and_not_after_what_ended_it() -> None:
    handover = Handover(10, 1000, lambda: None)
    handover.fail(SourceUnavailable("away"), final=False)
    with pytest.raises(SourceUnavailable):
        await handover.get()
    handover.fail(SourceUnavailable("away"), final=False)
    handover.put(chunk(0, 1))
    assert (await handover.get()) is not None
    handover.end()
    assert await handover.get() is None


async def test_a_cancelled_get_leaves_the_next_chunk_in_place() -> None:
    handover = Handover(10, 1000, lambda: None)
    waiting = asyncio.ensure_future(handover.get())
    await asyncio.sleep(0)
    handover.put(chunk(0, 1))
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    got = await handover.get()
    assert got is not None and got.first == 0


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.booleans()), max_size=30),
    st.integers(0, 12),
)
async def test_joined_chunks_lose_nothing_and_keep_the_order_of_each_partition(
    puts: list[tuple[str, int, bool]], joined_records_max: int
) -> None:
    handover = Handover(1000, 100_000, lambda: None, joined_records_max)
    at = dict.fromkeys("abc", 0)
    sent: dict[str, list[bytes | None]] = {partition: [] for partition in "abc"}
    for partition, records, is_null in puts:
        made = chunk(at[partition], records, partition=partition)
        made = dataclasses.replace(made, records=[None if is_null else b"%d" % n for n in made.offsets])
        at[partition] = made.next
        sent[partition] += made.records
        handover.put(made)
    handover.end()
    got: dict[str, list[bytes | None]] = {partition: [] for partition in "abc"}
    next_ = dict.fromkeys("abc", 0)
    while (taken := await handover.get()) is not None:
        assert taken.first == next_[taken.partition]
        assert len(taken.offsets) == len(taken.times_ms) == len(taken.records) <= max(5, joined_records_max)
        assert list(taken.offsets) == [n for n in taken.offsets if taken.first <= n < taken.next]
        next_[taken.partition] = taken.next
        got[taken.partition] += taken.records
    assert (got, next_, handover.records) == (sent, at, 0)


async def test_small_chunks_of_a_partition_leave_as_one_and_the_oldest_leaves_first() -> None:
    handover = Handover(1000, 100_000, lambda: None, 10)
    for first in range(0, 18, 3):
        for partition in ("a", "b"):
            handover.put(chunk(first, 3, partition=partition))
    handover.end()
    left = []
    while (taken := await handover.get()) is not None:
        left.append((taken.partition, taken.first, taken.next))
    assert left == [("a", 0, 9), ("b", 0, 9), ("a", 9, 18), ("b", 9, 18)]


async def test_arrow_chunks_are_never_joined() -> None:
    handover = Handover(1000, 100_000, lambda: None, 10)
    for first in (0, 2):
        table = pa.table({"x": [first, first + 1]})
        handover.put(dataclasses.replace(chunk(first, 2), records=table))
    assert [(await handover.get()).next for _ in range(2)] == [2, 4]  # type: ignore[union-attr]


async def test_word_of_a_loss_keeps_its_place_and_no_chunk_is_joined_over_it() -> None:
    handover = Handover(1000, 100_000, lambda: None, 100)
    loss = DataLoss((Gap("a", 4, 0, "shrunk"),), "", 5)
    for first in (0, 2):
        handover.put(chunk(first, 2, partition="a"))
        handover.put(chunk(first, 2, partition="b"))
    handover.put_loss(loss)
    handover.put(chunk(4, 2, partition="b"))
    handover.put(chunk(0, 2, partition="a"))
    handover.put(chunk(2, 2, partition="a"))
    handover.end()
    left: list[object] = []
    while (taken := await handover.get()) is not None:
        left.append(taken if isinstance(taken, DataLoss) else (taken.partition, taken.first, taken.next))
    assert left == [("a", 0, 4), ("b", 0, 4), loss, ("b", 4, 6), ("a", 0, 4)]


async def test_keys_are_joined_and_counted_like_values() -> None:
    handover = Handover(1000, 20, lambda: None, 100)
    handover.put(dataclasses.replace(chunk(0, 2), keys=[b"k" * 5, None]))
    assert handover.has_room()
    handover.put(dataclasses.replace(chunk(2, 2), keys=[b"l" * 6, b"m" * 5]))
    assert not handover.has_room()
    taken = await handover.get()
    assert isinstance(taken, Chunk) and taken.keys == [b"k" * 5, None, b"l" * 6, b"m" * 5]
    assert handover.has_room()
