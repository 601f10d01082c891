"""Brings rows from the store before their step, after a start that left the tables in the store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

import numpy as np

from streamtrain.errors import StoreBehind, StoreUnavailable
from streamtrain.layout import Layout
from streamtrain.log.record import TableRows
from streamtrain.metrics import Metrics
from streamtrain.samples.batch import SampleBatch
from streamtrain.sparse.wanted import RowsWanted
from streamtrain.store.applier import StoreApplier
from streamtrain.store.store import Store

__all__ = ["StorePrefetch"]

logger = logging.getLogger(__name__)

_PAUSE_FIRST_S, _PAUSE_MAX_S = 0.1, 5.0


class StorePrefetch:
    """Pulls each row once, the first time that a batch names an id that needs it.

    Once asked for, a row is in memory and stays there, so memory is newer than the store from then on. It keeps
    a set of its own of rows asked for: it never reads what the trainer thread is changing.

    Args:
      store: has every epoch up to `epoch_min`.
      applier: repairs a shard that lost its rows.
      layout: which slot reads which table.
      wanted: by table, which rows ids need; none was asked for yet. Tables that are not named are in memory, whole.
      epoch_min: an answer from a shard that is behind it is refused: fail closed.
      metrics: counts.
    """

    def __init__(
        self,
        store: Store,
        applier: StoreApplier,
        layout: Layout,
        wanted: Mapping[str, RowsWanted],
        epoch_min: int,
        metrics: Metrics,
    ) -> None:
        self._store, self._applier, self._epoch_min, self._metrics = store, applier, epoch_min, metrics
        self._slots: dict[str, list[str]] = {}
        named = [(c.table, c.name) for c in layout.pooled] + [(s.table, s.name) for s in layout.sequences]
        for table, slot in named:
            if table not in wanted:
                continue
            self._slots.setdefault(table, []).append(slot)
        self._wanted = wanted

    async def rows_for(self, batch: SampleBatch) -> Mapping[str, TableRows]:
        """By table, the stored rows that no batch needed before.

        A store that does not answer is waited for: learning pauses, it never goes on with default rows.
        """
        pulled: dict[str, TableRows] = {}
        for table, slots in self._slots.items():
            ids = np.concatenate([batch.ids[slot].values for slot in slots])
            new = self._wanted[table].new(ids)
            if len(new):
                _, pulled[table] = await self._pull(table, new)
                self._metrics.store_pulled.inc(len(pulled[table].ids))
        return pulled

    async def _pull(self, table: str, ids: np.ndarray) -> tuple[np.ndarray, TableRows]:
        pause_s = _PAUSE_FIRST_S
        while True:
            try:
                return await self._store.pull(table, ids, self._epoch_min)
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
                await self._applier.repair(self._epoch_min)
                logger.warning("the store was repaired from the log, training goes on")
                return
            except StoreUnavailable:
                pass
        await asyncio.sleep(pause_s)
