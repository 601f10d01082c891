"""Brings rows from the store before their step: those that a start left there, and those that left memory."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamtrain.errors import StoreBehind, StoreUnavailable
from streamtrain.layout import Layout
from streamtrain.log.record import TableRows
from streamtrain.metrics import Metrics
from streamtrain.samples.batch import SampleBatch
from streamtrain.sparse.wanted import RowsWanted
from streamtrain.store.applier import StoreApplier
from streamtrain.store.progress import Progress
from streamtrain.store.store import Store
from streamtrain.store.tier import Tier

__all__ = ["Fetched", "StorePrefetch"]

logger = logging.getLogger(__name__)

_PAUSE_FIRST_S, _PAUSE_MAX_S = 0.1, 5.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """What the trainer does before it gets a batch, in this order.

    Attributes:
      evicted: by table, ids (`[E]` uint64) whose rows it lets go of.
      rows: by table, rows that it takes in.
    """

    evicted: Mapping[str, NDArray[np.uint64]]
    rows: Mapping[str, TableRows]


class StorePrefetch:
    """Pulls each row when a batch names an id that needs it and that is not in memory.

    It keeps a set of its own of ids whose rows it asked for and that are in memory since, newer than in the store: it
    never reads what the trainer thread is changing. Of tables with a bound on their memory a `Tier` keeps it.

    Args:
      store: has every epoch up to that of `progress`.
      applier: repairs a shard that lost its rows.
      layout: which slot reads which table.
      wanted: by table, which rows ids need; none was asked for yet. Tables that are named neither here nor in `tiers` are
        in memory, whole.
      progress: its epoch is what the store must have: an answer from a shard that is behind it is refused, fail closed.
      metrics: counts.
      tiers: the tables with a bound on their memory.
    """

    def __init__(
        self,
        store: Store,
        applier: StoreApplier,
        layout: Layout,
        wanted: Mapping[str, RowsWanted],
        progress: Progress,
        metrics: Metrics,
        tiers: Mapping[str, Tier] | None = None,
    ) -> None:
        self._store, self._applier, self._progress, self._metrics = store, applier, progress, metrics
        self._wanted, self._tiers = wanted, tiers or {}
        self._slots: dict[str, list[str]] = {}
        named = [(c.table, c.name) for c in layout.pooled] + [(s.table, s.name) for s in layout.sequences]
        for table, slot in named:
            if table in wanted or table in self._tiers:
                self._slots.setdefault(table, []).append(slot)
        self._batch = 0

    async def rows_for(self, batch: SampleBatch) -> Fetched:
        """What to take in, and to let go of, before `batch`, the next one.

        A store that does not answer is waited for: learning pauses, it never goes on with default rows.
        """
        self._batch += 1
        evicted: dict[str, NDArray[np.uint64]] = {}
        rows: dict[str, TableRows] = {}
        for table, slots in self._slots.items():
            new = np.concatenate([batch.ids[slot].values for slot in slots])
            if table in self._tiers:
                new, evicted[table] = await self._tiers[table].make_room(new, self._batch)
            else:
                new = self._wanted[table].new(new)
            if len(new):
                begin = time.perf_counter()
                _, rows[table] = await self._pull(table, new)
                self._metrics.store_pulled.inc(len(rows[table].ids))
                self._metrics.tier_stalls.labels("rows").inc()
                self._metrics.tier_stall_seconds.labels("rows").inc(time.perf_counter() - begin)
        return Fetched(evicted, rows)

    async def _pull(self, table: str, ids: np.ndarray) -> tuple[np.ndarray, TableRows]:
        pause_s = _PAUSE_FIRST_S
        while True:
            try:
                return await self._store.pull(table, ids, self._progress.epoch)
            except (StoreBehind, StoreUnavailable) as error:
                if pause_s == _PAUSE_FIRST_S:
                    logger.warning("training pauses, rows cannot be pulled: %s", error)
                self._metrics.store_errors.inc()
                await self._mend(error, pause_s)
                pause_s = min(pause_s * 2, _PAUSE_MAX_S)

    async def _mend(self, error: StoreBehind | StoreUnavailable, pause_s: float) -> None:
        """Repairs a shard that lost rows; waits for a store that does not answer."""
        if isinstance(error, StoreBehind):
            try:
                await self._applier.repair(self._progress.epoch)
                logger.warning("the store was repaired from the log, training goes on")
                return
            except StoreUnavailable:
                pass
        await asyncio.sleep(pause_s)
