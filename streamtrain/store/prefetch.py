"""Brings rows from the store before their step: those that a start left there, and those that left memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from streamtrain.errors import TableFull
from streamtrain.layout import Layout
from streamtrain.log.record import TableRows
from streamtrain.metrics import Metrics
from streamtrain.samples.batch import SampleBatch
from streamtrain.samples.decoded import DecodedChunk
from streamtrain.sparse.unite import distinct
from streamtrain.sparse.wanted import RowsWanted
from streamtrain.store.applier import StoreApplier
from streamtrain.store.patience import Patience
from streamtrain.store.progress import Progress
from streamtrain.store.store import Store
from streamtrain.store.tier import Tier

__all__ = ["Fetched", "StorePrefetch"]

# The part of the rows in memory that a part of a chunk may name: beside it there is room for the minibatch that waits for
# its last samples, and for what the tier lets go of ahead of need.
_PARTS = 4


@dataclass(frozen=True, slots=True)
class Fetched:
    """What the trainer does before it gets a batch, in this order.

    Attributes:
      evicted: by table, ids (`[E]` uint64) whose rows it lets go of.
      rows: by table, rows that it takes in.
      whole: the store had all steps before this one when they were pulled.
    """

    evicted: Mapping[str, NDArray[np.uint64]]
    rows: Mapping[str, TableRows]
    whole: int = 0


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
        self._store, self._progress, self._metrics = store, progress, metrics
        self._patience = Patience(applier, progress, metrics)
        self._wanted, self._tiers = wanted, tiers or {}
        self._slots: dict[str, list[str]] = {}
        named = [(c.table, c.name) for c in layout.pooled] + [(s.table, s.name) for s in layout.sequences]
        for table, slot in named:
            if table in wanted or table in self._tiers:
                self._slots.setdefault(table, []).append(slot)
        self._bounds = {table: self._tiers[table].rows_max for table in self._slots if table in self._tiers}
        self._batch = 0

    async def fitting(self, chunk: DecodedChunk) -> Sequence[DecodedChunk]:
        """The chunk, in parts if it names more ids than memory holds well beside what is being learned. None holds less than
        a record.

        Raises:
          TableFull: a record alone names more ids than memory holds.
        """
        if self._fits({table: len(self._ids(table, chunk.batch)) for table in self._bounds}):
            return [chunk]
        return await asyncio.to_thread(self._split, chunk)

    def _split(self, chunk: DecodedChunk) -> list[DecodedChunk]:
        parts: list[DecodedChunk] = []
        waiting = [chunk]
        while waiting:
            part = waiting.pop()
            named = {table: len(distinct(self._ids(table, part.batch))) for table in self._bounds}
            if self._fits(named):
                parts.append(part)
            elif (halves := part.halves()) is not None:
                waiting += reversed(halves)
            else:
                self._check(part, named)
                parts.append(part)
        return parts

    def _fits(self, named: Mapping[str, int]) -> bool:
        return all(count <= self._bounds[table] // _PARTS for table, count in named.items())

    def _check(self, part: DecodedChunk, named: Mapping[str, int]) -> None:
        for table, count in named.items():
            if count > (rows_max := self._bounds[table]):
                raise TableFull(
                    f"table {table!r}: the record {part.partition} offset {part.offsets[0]} names {count} ids with its "
                    f"{part.batch.size} samples, and memory_bytes_max holds {rows_max} rows, which have to be there together; "
                    f"raise tables.{table}.memory_bytes_max"
                )

    def _ids(self, table: str, batch: SampleBatch) -> NDArray[np.uint64]:
        return np.concatenate([batch.ids[slot].values for slot in self._slots[table]])

    async def rows_for(self, batch: SampleBatch) -> Fetched:
        """What to take in, and to let go of, before `batch`, the next one, which `fitting` gave.

        A store that does not answer is waited for: learning pauses, it never goes on with default rows.
        """
        self._batch += 1
        whole = self._progress.step
        evicted: dict[str, NDArray[np.uint64]] = {}
        rows: dict[str, TableRows] = {}
        for table in self._slots:
            new = self._ids(table, batch)
            if table in self._tiers:
                new, evicted[table] = await self._tiers[table].make_room(new, self._batch)
            else:
                new = self._wanted[table].new(new)
            if len(new):
                begin = time.perf_counter()
                _, rows[table] = await self._patience.insist(partial(self._store.pull, table, new))
                self._metrics.store_pulled.inc(len(rows[table].ids))
                self._metrics.tier_stalls.labels("rows").inc()
                self._metrics.tier_stall_seconds.labels("rows").inc(time.perf_counter() - begin)
        return Fetched(evicted, rows, whole)
