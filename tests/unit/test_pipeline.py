"""From the source to the handoff: order, back-pressure, ends and failures."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from streamtrain.errors import SourceError, SourceUnavailable, StoreRefused, TooManyBadSamples
from streamtrain.log.record import TableRows
from streamtrain.metrics import Metrics
from streamtrain.pipeline import Feed, Prefetch
from streamtrain.samples.batch import SampleBatch
from streamtrain.samples.decoder import Decoder
from streamtrain.samples.schema import Schema
from streamtrain.sources import Chunk
from streamtrain.store.prefetch import Fetched
from streamtrain.training.guard import BadSampleGuard
from streamtrain.training.handoff import End, Handoff, Item
from streamtrain.training.settings import BadSampleSettings
from tests.fakes import SCHEMA, ScriptedSettings, ScriptedSource, chunk


def feed(handoff: Handoff, *script: Chunk | BaseException, prefetch: Prefetch | None = None) -> Feed:
    ScriptedSource.script = script
    source = ScriptedSource(ScriptedSettings(kind="tests.fakes:ScriptedSource"), until_end=True)
    ScriptedSource.script = ()
    decoder = Decoder(Schema.model_validate(SCHEMA))
    return Feed(source, decoder, BadSampleGuard(BadSampleSettings()), handoff, prefetch, Metrics())


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

    def take() -> None:
        while not isinstance(item := handoff.get(30), End):
            assert isinstance(item, Item)
            got.append(item.decoded.first)
            assert handoff._queue.qsize() <= 2

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


async def test_rows_travel_with_the_chunk_that_asked_for_them_and_a_refusal_stops() -> None:
    rows, gone = {"main": TableRows.empty(1, 1)}, np.arange(3, dtype=np.uint64)

    class Rows:
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
