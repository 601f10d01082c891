"""One table whose memory is bounded: which of its rows come from the store, and which leave memory to make room."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from streamtrain.metrics import Metrics
from streamtrain.sparse.residents import Residents
from streamtrain.sparse.stored_ids import StoredIds
from streamtrain.store.applier import StoreStatus
from streamtrain.store.progress import Progress

__all__ = ["Applied", "Tier"]

# Of the rows in memory, the part that is let go of ahead of need: while the store applies an epoch, none can be. The more
# there is room for, the larger are epochs that are cut for lack of it, and a page of the store that takes several rows at
# once costs what it costs for one; what leaves too early is pulled again.
_AHEAD = 4


class Applied(Protocol):
    """Where the store stands: `StoreApplier` has this shape."""

    @property
    def status(self) -> StoreStatus: ...

    async def beyond(self, epoch: int) -> None: ...


class Tier:
    """Decides about one table, on the side that feeds the trainer, which it never reads; `docs/store.md` has the argument.

    Args:
      table: its name.
      rows_max: how many rows may be in memory.
      stored: the ids that the store has a row of, and others perhaps; told here of those that leave memory.
      applied: where the store stands.
      progress: what the trainer has learned; of all tiers.
      metrics: counts.

    Attributes:
      rows_max: as given.
    """

    def __init__(
        self,
        table: str,
        rows_max: int,
        stored: StoredIds,
        applied: Applied,
        progress: Progress,
        metrics: Metrics,
    ) -> None:
        self._table, self._residents, self._stored = table, Residents(table, rows_max), stored
        self._applied, self._progress, self._metrics = applied, progress, metrics
        self.rows_max = rows_max

    async def make_room(
        self, ids: NDArray[np.uint64], batch: int
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Takes in the ids (`[N]` uint64, may repeat) that `batch` names; waits where no row can leave memory yet.

        Args:
          ids: `rows_max` distinct ones at most.
          batch: its number, larger than that of the batch before.

        Returns:
          Ids whose rows have to be pulled, and ids whose rows the trainer has to let go of before it gets this batch. An id
          that is in neither set is new: no store has a row of it.
        """
        residents = self._residents
        new, hits = await asyncio.to_thread(residents.name, ids, batch)
        self._metrics.tier_hits.labels(self._table).inc(hits)
        self._metrics.tier_misses.labels(self._table).inc(len(new))
        assert hits + len(new) <= residents.ids_max, "a batch that can never be in memory"
        ahead = residents.ids_max // _AHEAD
        evicted = [await self._evict(len(residents) + len(new) + ahead - residents.ids_max)]
        if len(residents) + len(new) > residents.ids_max:
            begin = time.perf_counter()
            while (wanted := len(residents) + len(new) - residents.ids_max) > 0:
                # Everything before this batch is learned, cut and applied in the end, and then its rows may leave.
                self._progress.urgent = True
                await self._applied.beyond(self._progress.epoch)
                evicted.append(await self._evict(wanted + ahead))
            self._metrics.tier_stalls.labels("room").inc()
            self._metrics.tier_stall_seconds.labels("room").inc(time.perf_counter() - begin)
        await asyncio.to_thread(residents.add, new, batch)
        self._metrics.tier_bytes.labels(self._table).set(residents.memory_bytes + self._stored.memory_bytes)
        gone = np.concatenate(evicted)
        self._metrics.tier_evicted.labels(self._table).inc(len(gone))
        self._stored.add(gone)
        # What was let go of is in the log: it would not be if the store had not applied it.
        self._stored.renew()
        return new[self._stored.may_hold(new)], gone

    async def _evict(self, wanted: int) -> NDArray[np.uint64]:
        if wanted <= 0:
            return np.empty(0, np.uint64)
        self._progress.applied(self._applied.status.applied_epoch or 0)
        return await asyncio.to_thread(self._residents.evict, wanted, self._progress.batch)
