"""Reading spans again: how long it may take, and what is said when nothing comes. The connection is scripted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

import numpy as np
import pytest

from consumers.kafka import spans as module
from consumers.kafka.settings import KafkaSettings
from consumers.kafka.spans import SpanReader
from streamtrain.errors import SourceUnavailable
from streamtrain.sources import Chunk

PATIENCE_S = 30.0


class SlowSession:
    """A connection to a topic of 1,000 offsets; each answer takes `answer_s` of the loop's time. `silent` sends none."""

    answer_s = 0.0
    silent = False
    advance = staticmethod(lambda seconds: None)

    def __init__(self, *_: object, **__: object) -> None:
        self._at = 0

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def begin(self, partitions: Iterable[int]) -> dict[int, int]:
        return dict.fromkeys(partitions, 0)

    async def end(self, partitions: Iterable[int]) -> dict[int, int]:
        return dict.fromkeys(partitions, 1000)

    def assign(self, offsets: Mapping[int, int]) -> None:
        (self._at,) = offsets.values()

    async def poll(self, records_max: int, timeout_s: float) -> list[Chunk]:
        self.advance(self.answer_s)
        await asyncio.sleep(0)
        if self.silent:
            return []
        first, self._at = self._at, self._at + records_max
        offsets = np.arange(first, self._at)
        return [Chunk("t:0", first, self._at, offsets, offsets, [b""] * records_max)]


@pytest.fixture
async def reader(monkeypatch: pytest.MonkeyPatch) -> SpanReader:
    """A reader on a loop whose time passes when a connection says so."""
    loop, passed_s = asyncio.get_running_loop(), 0.0
    time = loop.time

    def advance(seconds: float) -> None:
        nonlocal passed_s
        passed_s += seconds

    monkeypatch.setattr(loop, "time", lambda: time() + passed_s)
    monkeypatch.setattr(SlowSession, "advance", staticmethod(advance))
    monkeypatch.setattr(module, "Session", SlowSession)
    settings = KafkaSettings(
        kind="kafka",
        topic="t",
        bootstrap_servers="b:9092",
        chunk_records_max=10,
        unavailable_after_s=PATIENCE_S,
    )
    return SpanReader(settings)


async def test_a_long_span_may_take_longer_than_kafka_may_be_silent(
    reader: SpanReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SlowSession, "answer_s", PATIENCE_S * 0.6)
    chunks = await reader.read("t:0", 5, 98)
    assert [(chunk.first, chunk.next) for chunk in chunks][-1] == (95, 98)
    assert [offset for chunk in chunks for offset in chunk.offsets.tolist()] == list(range(5, 98))


async def test_a_topic_that_sends_nothing_is_unavailable_and_the_text_says_why(
    reader: SpanReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SlowSession, "answer_s", 1.0)
    monkeypatch.setattr(SlowSession, "silent", True)
    with pytest.raises(SourceUnavailable, match=r"b:9092 has not answered for 30 s \(TimeoutError\)"):
        await reader.read("t:0", 0, 10)
