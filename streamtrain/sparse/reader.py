"""Scores samples from tables without changing them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from streamtrain.layout import Layout
from streamtrain.samples.batch import SampleBatch
from streamtrain.sparse.activations import SparseActivations, allocate, begin_rows
from streamtrain.sparse.kind import Lookup
from streamtrain.sparse.rehearsal import sample_batch
from streamtrain.sparse.stacking import TableSlots

__all__ = ["SparseReader", "check_padding"]


class SparseReader:
    """Turns ids into the vectors that the model sees, and never inserts: ids without a row have their initial vector.

    Any number of threads may score at once while none changes the tables.
    """

    def __init__(self, layout: Layout, tables: Mapping[str, Lookup]) -> None:
        """Args: layout: the slots; tables: by name, those that the layout uses."""
        self._layout = layout
        self._tables = [(TableSlots(layout, name), table) for name, table in tables.items()]

    def score(self, batch: SampleBatch, padded: int, nodes: Sequence[int] = ()) -> SparseActivations:
        """The activations of `batch` in memory of their own.

        Args:
          batch: B samples.
          padded: P >= B, rows of the result.
          nodes: of each of the layout's levels, P_l, at least as many as the batch has.

        Raises:
          ValueError: the batch is larger than that.
        """
        check_padding(batch, self._layout, padded, nodes)
        out = allocate(self._layout, padded, nodes)
        begin_rows(batch, self._layout.levels, out)
        for slots, table in self._tables:
            stack = slots.stack(batch)
            slots.pool(table.lookup(stack.values), np.arange(len(stack.values), dtype=np.int32), stack, out)
        return out

    def warm_up(self) -> None:
        """Compiles every kernel that scoring or changing the tables can need; the tables do not change."""
        for _, table in self._tables:
            table.rehearse()
        self.score(sample_batch(self._layout), 2, [2] * len(self._layout.levels))


def check_padding(batch: SampleBatch, layout: Layout, padded: int, nodes: Sequence[int]) -> None:
    """Raises ValueError where `batch` does not fit into the padded rows: kernels check no bounds."""
    if batch.size > padded:
        raise ValueError(f"a minibatch of {batch.size} samples does not fit into {padded} rows")
    if len(nodes) != len(layout.levels):
        raise ValueError(f"padded nodes {list(nodes)} are not those of the levels {list(layout.levels)}")
    for level, rows in zip(layout.levels, nodes, strict=True):
        if not batch.rows(level) <= rows <= padded:
            raise ValueError(
                f"{batch.rows(level)} nodes of level {level!r} do not fit into {rows} of {padded} rows"
            )
