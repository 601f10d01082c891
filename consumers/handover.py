"""Chunks on their way from a source's own thread to the daemon's loop, bounded in records and bytes."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
import pyarrow as pa

from streamtrain.errors import SourceError
from streamtrain.sources import Chunk, DataLoss

__all__ = ["Handover", "chunk_bytes"]

JOINED_BYTES_MAX = 4 << 20
"""Chunks are not joined beyond this: of records that hold many samples each, few make a chunk that is dear enough."""


class Handover:
    """A bounded buffer with one producing thread and one consuming event loop.

    The producer looks at `has_room` before it fetches more; what it fetched it may always put. So the buffer holds
    at most its bounds plus one fetch.

    Decoding has a price a chunk as well as one a record, and brokers answer a stream of few records with very small
    chunks. So those of a partition that wait leave as one: the slower the consumer, the larger what it gets.

    Args:
      records_max: no room at or above so many records.
      bytes_max: no room at or above so many bytes of payload.
      on_room: called in the consumer's thread whenever there is room again after there was none. Must not block.
      joined_records_max: chunks of one partition are joined up to so many records; 0: they stay as they were put.
    """

    def __init__(
        self,
        records_max: int,
        bytes_max: int,
        on_room: Callable[[], None],
        joined_records_max: int = 0,
    ) -> None:
        self._records_max, self._bytes_max, self._on_room = records_max, bytes_max, on_room
        self._joined_records_max = joined_records_max
        self._lock = threading.Lock()
        self._chunks: deque[tuple[Chunk | DataLoss, int]] = deque()
        self._records = self._bytes = 0
        self._ended = False
        self._final: BaseException | None = None
        self._passing: SourceError | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready: asyncio.Event | None = None

    @property
    def records(self) -> int:
        """Records held now."""
        return self._records

    def has_room(self) -> bool:
        """Whether the producer should fetch more."""
        with self._lock:
            return self._records < self._records_max and self._bytes < self._bytes_max

    def put(self, chunk: Chunk) -> None:
        """Adds a chunk. Never blocks and never refuses."""
        size = chunk_bytes(chunk)
        with self._lock:
            self._chunks.append((chunk, size))
            # A chunk without records counts as one, so that not even those pile up without bound.
            self._records += max(1, len(chunk.offsets))
            self._bytes += size
            # What is put shows that the trouble is over.
            self._passing = None
        self._wake()

    def put_loss(self, loss: DataLoss) -> None:
        """Adds word of a loss, behind the chunks put before it. No chunk is joined over it."""
        with self._lock:
            self._chunks.append((loss, 0))
            self._passing = None
        self._wake()

    def end(self) -> None:
        """Nothing follows: `get` answers None once the buffer is empty."""
        with self._lock:
            self._ended = True
        self._wake()

    def fail(self, error: BaseException, *, final: bool) -> None:
        """Hands an error over.

        Args:
          error: what `get` raises after the chunks put before it.
          final: whether every later `get` raises it too; otherwise one does, and chunks may follow.
        """
        with self._lock:
            if final:
                self._final = self._final or error
            elif isinstance(error, SourceError):
                self._passing = error
        self._wake()

    async def get(self) -> Chunk | DataLoss | None:
        """The next chunk, or word of a loss; None at the end. Cancelling it loses nothing.

        Raises: what `fail` was given.
        """
        if self._ready is None:
            self._loop, self._ready = asyncio.get_running_loop(), asyncio.Event()
        while True:
            # Cleared before looking: what is put in between sets it again.
            self._ready.clear()
            with self._lock:
                if self._chunks:
                    return self._take()
                if self._final is not None:
                    raise self._final
                if self._passing is not None:
                    error, self._passing = self._passing, None
                    raise error
                if self._ended:
                    return None
            await self._ready.wait()

    def _take(self) -> Chunk | DataLoss:
        had_room = self._records < self._records_max and self._bytes < self._bytes_max
        first, size = self._chunks.popleft()
        if isinstance(first, DataLoss):
            return first
        taken = [(first, size)]
        self._take_followers(taken)
        self._records -= sum(max(1, len(chunk.offsets)) for chunk, _ in taken)
        self._bytes -= sum(size for _, size in taken)
        if not had_room and self._records < self._records_max and self._bytes < self._bytes_max:
            self._on_room()
        return _joined([chunk for chunk, _ in taken])

    def _take_followers(self, taken: list[tuple[Chunk, int]]) -> None:
        """Moves to `taken` what follows its chunk in the same partition and fits. Other partitions keep their order."""
        first = taken[0][0]
        room = 0 if isinstance(first.records, pa.Table) else self._joined_records_max - len(first.offsets)
        room_bytes = JOINED_BYTES_MAX - taken[0][1]
        passed: list[tuple[Chunk | DataLoss, int]] = []
        while room > 0 and self._chunks:
            chunk, size = self._chunks.popleft()
            if isinstance(chunk, DataLoss):
                passed.append((chunk, size))
                break
            if chunk.partition != first.partition:
                passed.append((chunk, size))
                continue
            room -= len(chunk.offsets)
            room_bytes -= size
            if room < 0 or room_bytes < 0 or isinstance(chunk.records, pa.Table):
                passed.append((chunk, size))
                break
            taken.append((chunk, size))
        self._chunks.extendleft(reversed(passed))

    def _wake(self) -> None:
        loop, ready = self._loop, self._ready
        if loop is not None and ready is not None:
            # A loop that is closed has no reader left to wake.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(ready.set)


def _joined(chunks: Sequence[Chunk]) -> Chunk:
    """Chunks of one partition, each beginning where the one before it ends, as one."""
    if len(chunks) == 1:
        return chunks[0]
    return Chunk(
        chunks[0].partition,
        chunks[0].first,
        chunks[-1].next,
        np.concatenate([chunk.offsets for chunk in chunks]),
        np.concatenate([chunk.times_ms for chunk in chunks]),
        list(chain.from_iterable(chunk.records for chunk in chunks)),
        None if chunks[0].keys is None else list(chain.from_iterable(chunk.keys or () for chunk in chunks)),
    )


def chunk_bytes(chunk: Chunk) -> int:
    """The payload bytes of a chunk."""
    if isinstance(chunk.records, pa.Table):
        return int(chunk.records.nbytes)
    keys = sum(len(key) for key in chunk.keys if key is not None) if chunk.keys is not None else 0
    return keys + sum(len(record) for record in chunk.records if record is not None)
