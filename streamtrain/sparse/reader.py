"""Scores samples from tables without changing them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from streamtrain.layout import Layout
from streamtrain.samples.batch import SampleBatch
from streamtrain.sparse.activations import SparseActivations, allocate
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

    def score(self, batch: SampleBatch, padded: int) -> SparseActivations:
        """The activations of `batch`, padded to `padded` >= `batch.size` rows, in memory of their own.

        Raises:
          ValueError: the batch is larger than that.
        """
        check_padding(batch, padded)
        out = allocate(self._layout, padded)
        out.pooled[batch.size :] = 0
        for slots, table in self._tables:
            stack = slots.stack(batch)
            slots.pool(table.lookup(stack.values), np.arange(len(stack.values), dtype=np.int32), stack, out)
        return out

    def warm_up(self) -> None:
        """Compiles every kernel that scoring or changing the tables can need; the tables do not change."""
        for _, table in self._tables:
            table.rehearse()
        self.score(sample_batch(self._layout), 2)


def check_padding(batch: SampleBatch, padded: int) -> None:
    """Raises ValueError where `batch` does not fit into `padded` rows: kernels check no bounds."""
    if batch.size > padded:
        raise ValueError(f"a minibatch of {batch.size} samples does not fit into {padded} rows")
