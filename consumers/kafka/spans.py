"""Reads spans again, for replay: a consumer beside the one that reads the stream."""

from __future__ import annotations

import asyncio
from functools import partial

from aiokafka.errors import OffsetOutOfRangeError

from consumers.kafka.positions import number_of
from consumers.kafka.reader import cut, patiently
from consumers.kafka.session import Session
from consumers.kafka.settings import KafkaSettings
from streamtrain.errors import OffsetOutOfRange
from streamtrain.sources import Chunk

__all__ = ["SpanReader"]

_POLL_S = 0.2


class SpanReader:
    """Keeps its connection between calls, and its place in a partition: spans in order are read without seeking.

    Its coroutines run on the Kafka client's loop, one at a time.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._session: Session | None = None
        self._at: tuple[str, int] | None = None
        self._lock = asyncio.Lock()

    async def read(self, partition: str, first: int, next: int) -> list[Chunk]:
        """The records of `partition` from offset `first` to `next` (exclusive).

        Raises:
          OffsetOutOfRange: a part of the span is gone, or not there yet.
          PartitionMissing: `partition` is not one of the topic.
          SourceUnavailable: Kafka does not answer.
        """
        number = number_of(partition, self._settings.topic)
        async with self._lock:
            try:
                session = await patiently(
                    lambda: self._placed(partition, number, first, next), self._settings
                )
                return await self._collect(session, partition, first, next)
            except BaseException:
                await self._drop()
                raise

    async def close(self) -> None:
        """Disconnects."""
        async with self._lock:
            await self._drop()

    async def _placed(self, partition: str, number: int, first: int, next: int) -> Session:
        """A connection that reads the partition from `first` on."""
        session = self._session or await self._connect()
        if self._at != (partition, first):
            begin, end = await session.begin([number]), await session.end([number])
            if first < begin[number] or next > end[number]:
                raise OffsetOutOfRange(
                    f"{partition}: offsets {first} to {next} cannot be read again, the topic holds "
                    f"{begin[number]} to {end[number]}: retention has deleted them, or the topic was created again"
                )
            session.assign({number: first})
        self._at = None
        return session

    async def _collect(self, session: Session, partition: str, first: int, next: int) -> list[Chunk]:
        chunks: list[Chunk] = []
        position = first
        while position < next:
            # No more records than there are offsets, so that the next span begins where this one ends.
            records_max = min(next - position, self._settings.chunk_records_max)
            # Each answer has a patience of its own: a long span may take what it takes.
            poll = partial(_poll, session, records_max, f"{partition}: offsets {position} to {next}")
            chunks += await patiently(poll, self._settings)
            position = chunks[-1].next
        if chunks and chunks[-1].next == next:
            self._at = (partition, next)
        return [cut(chunk, next) for chunk in chunks]

    async def _connect(self) -> Session:
        session = self._session = Session(self._settings, group_id=None)
        await session.open()
        return session

    async def _drop(self) -> None:
        session, self._session, self._at = self._session, None, None
        if session is not None:
            await session.close()


async def _poll(session: Session, records_max: int, wanted: str) -> list[Chunk]:
    """The next records, however long they take: the caller bounds it."""
    try:
        while not (chunks := await session.poll(records_max, _POLL_S)):
            pass
    except OffsetOutOfRangeError as error:
        raise OffsetOutOfRange(f"{wanted} were deleted just now") from error
    return chunks
