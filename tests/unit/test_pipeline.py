"""From the source to the handoff: order, back-pressure, ends and failures."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from streamtrain.errors import BadSample, SourceError, SourceUnavailable, StoreRefused, TooManyBadSamples
from streamtrain.log.record import TableRows
from streamtrain.metrics import Metrics
from streamtrain.pipeline import Feed, Prefetch
from streamtrain.samples.batch import SampleBatch
from streamtrain.samples.decoded import DecodedChunk
from streamtrain.samples.decoder import Decoder
from streamtrain.samples.schema import Schema
from streamtrain.sources import Chunk
from streamtrain.store.prefetch import Fetched
from streamtrain.training.guard import BadSampleGuard
from streamtrain.training.handoff import End, Handoff, Item
from streamtrain.training.settings import BadSampleSettings
from tests.fakes import SCHEMA, ScriptedSettings, ScriptedSource, chunk


def feed(
    handoff: Handoff,
    *script: Chunk | BaseException,
    prefetch: Prefetch | None = None,
    letterbox: Any = None,
    depth: int = 1,
) -> Feed:
    ScriptedSource.script = script
    source = ScriptedSource(ScriptedSettings(kind="tests.fakes:ScriptedSource"), until_end=True)
    ScriptedSource.script = ()
    decoder = Decoder(Schema.model_validate(SCHEMA))
    guard = BadSampleGuard(BadSampleSettings())
    return Feed(source, decoder, guard, handoff, prefetch, Metrics(), letterbox, depth)


def taken(handoff: Handoff) -> list[int | None]:
    """What is in the handoff now: by chunk its first offset; None for the end."""
    found: list[int | None] = []
    while (item := handoff.get(0.0)) is not None:
        found.append(item.decoded.first if isinstance(item, Item) else None)
    return found


async def test_chunks_arrive_in_order_and_then_the_end() -> None:
    handoff = Handoff(10)
    await feed(handoff, chunk(0, 4), chunk(4, 0, gap=3), chunk(7, 2)).run()
    assert taken(handoff) == [0, 4, 7, None]


async def test_a_full_handoff_holds_the_feed_until_the_trainer_takes() -> None:
    handoff = Handoff(2)
    running = asyncio.create_task(feed(handoff, *[chunk(first, 1) for first in range(5)]).run())
    got: list[int | None] = []
    while handoff._queue.qsize() < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)
    assert handoff._queue.qsize() == 2

    def take() -> None:
        while not isinstance(item := handoff.get(30), End):
            assert isinstance(item, Item)
            got.append(item.decoded.first)
            # All five are read once three are taken, and the end needs no room.
            assert handoff._queue.qsize() <= 2 + (len(got) >= 3)

    await asyncio.wait_for(asyncio.to_thread(take), 60)
    await running
    assert got == [0, 1, 2, 3, 4]


async def test_a_cancelled_feed_that_waits_for_room_still_says_the_end() -> None:
    handoff = Handoff(1)
    running = asyncio.create_task(feed(handoff, chunk(0, 1), chunk(1, 1)).run())
    while handoff._queue.qsize() == 0 or not handoff._free.locked():  # noqa: ASYNC110
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert taken(handoff)[0] == 0 and "decode" not in {t.name for t in threading.enumerate()}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (SourceError("gone"), "^gone$"),
        (RuntimeError("a bug"), r"^source 'ScriptedSource': read failed: RuntimeError: a bug \(raised at "),
    ],
)
async def test_a_final_fault_is_raised_after_the_end_is_said(fault: Exception, message: str) -> None:
    handoff = Handoff(10)
    with pytest.raises(SourceError, match=message):
        await feed(handoff, chunk(0, 4), fault).run()
    assert taken(handoff) == [0, None]


async def test_a_source_that_does_not_answer_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamtrain.pipeline._UNAVAILABLE_PAUSE_S", 0.0)
    handoff = Handoff(10)
    await feed(handoff, SourceUnavailable("away"), chunk(0, 4), SourceUnavailable("away")).run()
    assert taken(handoff) == [0, None]


async def test_a_flood_of_bad_records_is_not_handed_over() -> None:
    handoff = Handoff(10)
    with pytest.raises(TooManyBadSamples):
        await feed(handoff, chunk(0, 4), chunk(4, [b"{"] * 80)).run()
    assert taken(handoff) == [0, None]


class Whole:
    """Leaves chunks as they are."""

    async def fitting(self, chunk: DecodedChunk) -> Sequence[DecodedChunk]:
        return [chunk]


async def test_rows_travel_with_the_chunk_that_asked_for_them_and_a_refusal_stops() -> None:
    rows, gone = {"main": TableRows.empty(1, 1)}, np.arange(3, dtype=np.uint64)

    class Rows(Whole):
        asked = 0

        async def rows_for(self, batch: SampleBatch) -> Fetched:
            self.asked += 1
            if self.asked == 2:
                raise StoreRefused("another model")
            return Fetched({"main": gone}, rows)

    handoff = Handoff(10)
    with pytest.raises(StoreRefused):
        await feed(handoff, chunk(0, 4), chunk(4, 4), prefetch=Rows()).run()
    item = handoff.get(0.0)
    assert isinstance(item, Item) and item.pulled is rows and item.evicted["main"] is gone
    assert taken(handoff) == [None]


class Gate(Whole):
    """Holds each batch until it is let through; tells how many have come."""

    def __init__(self) -> None:
        self.open, self.came = asyncio.Event(), asyncio.Event()

    async def rows_for(self, batch: SampleBatch) -> Fetched:
        self.came.set()
        await self.open.wait()
        return Fetched({}, {})


async def until_still(decoder_calls: list[int]) -> None:
    """Returns when nothing was decoded for many turns of the loop; decoding is instant here."""
    still = 0
    while still < 50:
        before = len(decoder_calls)
        await asyncio.sleep(0)
        still = still + 1 if len(decoder_calls) == before else 0


@pytest.mark.parametrize("depth", [1, 3])
async def test_chunks_are_decoded_beside_the_pull_of_another_one_up_to_the_depth(
    monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    gate, handoff = Gate(), Handoff(20)
    made = feed(handoff, *[chunk(first, 1) for first in range(12)], prefetch=gate, depth=depth)
    decode, calls = made._decoder.decode, []

    def counted(chunk: Chunk) -> Any:
        calls.append(chunk.first)
        return decode(chunk)

    monkeypatch.setattr(made._decoder, "decode", counted)
    # In the loop's own thread, so that "nothing more is decoded" is a matter of turns, not of time.
    monkeypatch.setattr(
        asyncio.get_running_loop(), "run_in_executor", lambda _, call, *a: asyncio.sleep(0, call(*a))
    )
    running = asyncio.create_task(made.run())
    await gate.came.wait()
    await until_still(calls)
    # One is being pulled, `depth` wait for it, and one waits for room among them.
    assert calls == list(range(depth + 2)) and handoff.get(0.0) is None
    gate.open.set()
    await running
    assert calls == list(range(12)) and taken(handoff) == [*range(12), None]


async def test_nothing_behind_a_refused_record_goes_on_before_that_is_kept() -> None:
    keeping, kept = asyncio.Event(), asyncio.Event()

    class Letterbox:
        async def keep(self, chunk: Chunk, bad: Sequence[BadSample]) -> None:
            if bad:
                keeping.set()
                await kept.wait()

    handoff = Handoff(10)
    chunks = [chunk(0, 40), chunk(40, [b"{"]), chunk(41, 40)]
    running = asyncio.create_task(feed(handoff, *chunks, letterbox=Letterbox(), depth=4).run())
    await keeping.wait()
    for _ in range(50):
        await asyncio.sleep(0)
    assert taken(handoff) == [0]
    kept.set()
    await running
    assert taken(handoff) == [40, 41, None]


async def test_what_was_read_before_a_fault_is_handed_over_before_the_fault_is_told() -> None:
    gate, handoff = Gate(), Handoff(10)
    script = [chunk(0, 4), chunk(4, 4), SourceError("gone")]
    running = asyncio.create_task(feed(handoff, *script, prefetch=gate, depth=4).run())
    await gate.came.wait()
    for _ in range(50):
        await asyncio.sleep(0)
    assert not running.done()
    gate.open.set()
    with pytest.raises(SourceError, match="gone"):
        await running
    assert taken(handoff) == [0, 4, None]


async def test_a_cancelled_feed_leaves_no_task_behind_whatever_each_stage_is_at() -> None:
    gate, handoff = Gate(), Handoff(1)
    before = asyncio.all_tasks()
    running = asyncio.create_task(feed(handoff, *[chunk(n, 1) for n in range(9)], prefetch=gate).run())
    await gate.came.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert asyncio.all_tasks() == before and taken(handoff) == [None]


async def test_a_cancellation_that_a_source_leaks_ends_the_feed() -> None:
    handoff = Handoff(10)
    with pytest.raises(asyncio.CancelledError):
        await feed(handoff, chunk(0, 1), asyncio.CancelledError()).run()
    assert taken(handoff) == [0, None]
