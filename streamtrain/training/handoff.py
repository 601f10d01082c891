"""The bounded queue between the daemon's loop and the trainer thread."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from streamtrain.log.record import TableRows
from streamtrain.samples.decoded import DecodedChunk
from streamtrain.sources import DataLoss

__all__ = ["End", "Handoff", "Item"]


@dataclass(frozen=True, slots=True)
class Item:
    """A decoded chunk on its way to the trainer.

    Attributes:
      decoded: the chunk.
      pulled: by table, the rows that were pulled for it.
      evicted: by table, ids (`[E]` uint64) whose rows leave memory before these come in.
      whole: the store had all steps before this one when they were pulled.
    """

    decoded: DecodedChunk
    pulled: Mapping[str, TableRows] = field(default_factory=dict)
    evicted: Mapping[str, NDArray[np.uint64]] = field(default_factory=dict)
    whole: int = 0

    @property
    def bare(self) -> bool:
        """Whether no row comes or goes with it."""
        return not any(map(len, self.evicted.values())) and not any(
            len(rows.ids) for rows in self.pulled.values()
        )


@dataclass(frozen=True, slots=True)
class End:
    """The source has ended, or the feed has failed: nothing comes after it."""


class Handoff:
    """A bounded queue from the loop to one thread. When it is full, `put` waits, and so does reading."""

    def __init__(self, items_max: int) -> None:
        self._free = asyncio.Semaphore(items_max)
        self._queue: queue.SimpleQueue[Item | DataLoss | End] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()

    async def put(self, item: Item | DataLoss) -> None:
        """Hands an item over; waits while the queue is full."""
        await self._free.acquire()
        self._queue.put(item)

    def end(self) -> None:
        """Says that nothing follows. Never waits."""
        self._queue.put(End())

    def get(self, timeout_s: float) -> Item | DataLoss | End | None:
        """The next item, on the thread's side; None when none came in time."""
        try:
            item = self._queue.get(timeout=max(timeout_s, 0.0))
        except queue.Empty:
            return None
        if not isinstance(item, End) and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._free.release)
        return item
