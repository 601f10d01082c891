"""A bank: one table, whatever its kind, with the slots that it serves."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamtrain.layout import Layout
from streamtrain.samples.batch import SampleBatch
from streamtrain.sparse.activations import Gradients, SparseActivations
from streamtrain.sparse.dynamic import DynamicTable
from streamtrain.sparse.hashed import HashedTable
from streamtrain.sparse.kind import TableKind
from streamtrain.sparse.settings import TableSettings
from streamtrain.sparse.stacking import Stack, TableSlots
from streamtrain.sparse.tables import AnyTable
from streamtrain.sparse.unite import United, Uniter

__all__ = ["Bank", "make_table"]


def make_table(name: str, settings: AnyTable, seed: int) -> TableKind:
    """The table that `settings` describe, without rows. Raises ConfigError where there is no address space for it."""
    if isinstance(settings, TableSettings):
        return DynamicTable(name, settings, seed)
    return HashedTable(
        name, settings.dim, settings.hashing, init=settings.init, seed=seed, optimizer=settings.optimizer
    )


class _Ids(NamedTuple):
    """Of a minibatch: the ids of all slots, the distinct ones, and what the table has made of them."""

    stack: Stack
    united: United
    prepared: Any


class Bank:
    """Takes the ids of a minibatch to the arrays that the model sees, and gradients back to the table.

    Ids are deduplicated before the table sees them, and gradients are summed per distinct id: the table's kind
    knows no slots and no samples.
    """

    def __init__(self, layout: Layout, table: TableKind) -> None:
        """Args: layout: the slots, of which it takes its own; table: what holds their rows."""
        self.table = table
        self._slots = TableSlots(layout, table.name)
        # One holds the ids of the step in flight, the other those of the next.
        self._uniters, self._turn = (Uniter(), Uniter()), 0
        self._prepared: tuple[SampleBatch, _Ids] | None = None
        self._scratch = np.empty((0, table.dim), np.float32)
        self._flight: _Ids | None = None

    def prepare(self, batch: SampleBatch) -> None:
        """Does what `forward` of the next step will need and no row decides. For any thread, beside a step in flight."""
        self._prepared = batch, self._ids(batch)

    def _ids(self, batch: SampleBatch) -> _Ids:
        self._turn ^= 1
        stack = self._slots.stack(batch)
        united = self._uniters[self._turn].unite(stack.values)
        self._slots.weigh(stack, united.inverse, united.occurrences)
        return _Ids(stack, united, self.table.prepare(united))

    def forward(self, batch: SampleBatch, step: int, out: SparseActivations) -> None:
        """Begins a step of the table and writes its slots' part of `out`. Raises TableFull; then no step is begun."""
        prepared, self._prepared = self._prepared, None
        ids = prepared[1] if prepared is not None and prepared[0] is batch else self._ids(batch)
        vectors = self._take_scratch(len(ids.united.ids))
        self.table.begin(ids.united, ids.prepared, step, vectors)
        self._slots.pool(vectors, ids.united.inverse, ids.stack, out)
        self._flight = ids

    def backward(self, gradients: Gradients, step: int) -> bool:
        """Sums the gradients and lets the table learn; see `TableKind.learn`."""
        assert self._flight is not None, "forward comes first"
        ids, self._flight = self._flight, None
        sums = self._take_scratch(len(ids.united.ids))
        sums.fill(0)
        self._slots.accumulate(gradients, ids.united.inverse, ids.stack, sums)
        return self.table.learn(sums, step)

    def discard(self) -> None:
        """Takes `forward` back, where it came to its end."""
        if self._flight is not None:
            self._flight = None
            self.table.discard()

    def _take_scratch(self, count: int) -> NDArray[np.float32]:
        """`[count, D]` uninitialised, valid until the next call: first for vectors, then for their gradients."""
        if count > len(self._scratch):
            self._scratch = np.empty((1 << (count - 1).bit_length(), self.table.dim), np.float32)
        return self._scratch[:count]
