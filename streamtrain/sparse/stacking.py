"""The slots of one table, stacked: one kernel call a table, however many slots it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamtrain.layout import Layout, Sequence
from streamtrain.samples.batch import SampleBatch
from streamtrain.sparse import pooling
from streamtrain.sparse.activations import SparseActivations
from streamtrain.sparse.memory import as_input

__all__ = ["Stack", "TableSlots"]


@dataclass(frozen=True, slots=True)
class Stack:
    """The ids of a table's slots in a minibatch of B samples, slot after slot: pooled ones first, then sequences.

    Attributes:
      values: `[N]` uint64.
      offsets: `[S + Q, B + 1]` int64, by slot where in `values` each sample begins; pooled slots first.
      scales: float32, one for each of the pooled slots' ids: its share in the pooled vector.
    """

    values: NDArray[np.uint64]
    offsets: NDArray[np.int64]
    scales: NDArray[np.float32]


class TableSlots:
    """Which slots of the layout a table serves, and how. Immutable."""

    def __init__(self, layout: Layout, table: str) -> None:
        pooled = [columns for columns in layout.pooled if columns.table == table]
        self._sequences: tuple[Sequence, ...] = tuple(s for s in layout.sequences if s.table == table)
        self._names = (*(c.name for c in pooled), *(s.name for s in self._sequences))
        self._pooled = len(pooled)
        self._starts = np.array([columns.start for columns in pooled], np.int64)
        self._means = np.array([columns.pooling == "mean" for columns in pooled], np.bool_)
        self._weighted = tuple(i for i, columns in enumerate(pooled) if columns.pooling == "weighted")

    def stack(self, batch: SampleBatch) -> Stack:
        """Copies the ids of the table's slots into one array."""
        parts = [batch.ids[name] for name in self._names]
        values = np.concatenate([part.values for part in parts])
        offsets = np.concatenate([part.offsets for part in parts]).reshape(len(parts), batch.size + 1)
        ends = offsets[:, -1].cumsum()
        assert ends[-1] == len(values), (
            "the offsets of a slot do not end where its ids do; kernels check no bounds"
        )
        offsets[1:] += ends[:-1, None]
        scales = np.empty(ends[self._pooled - 1] if self._pooled else 0, np.float32)
        if self._pooled:
            pooling.fill_scales(offsets[: self._pooled], self._means, scales)
        for i in self._weighted:
            scales[offsets[i, 0] : offsets[i, -1]] = parts[i].weights
        return Stack(values, offsets, scales)

    def pool(
        self,
        vectors: NDArray[np.float32],
        inverse: NDArray[np.int32],
        stack: Stack,
        out: SparseActivations,
    ) -> None:
        """Writes the slots' pooled vectors and sequences.

        Args:
          vectors: `[U, D]` float32, those of the distinct ids.
          inverse: `[N]` int32, by occurrence the position of its id's vector.
          stack: of the minibatch.
          out: mutated: every row of the sequences, the first B rows of the slots' pooled columns.
        """
        if self._pooled:
            offsets = stack.offsets[: self._pooled]
            pooling.pool(vectors, inverse, stack.scales, offsets, self._starts, out.pooled)
        for i, sequence in enumerate(self._sequences, self._pooled):
            sequences, mask = out.sequences[sequence.name]
            pooling.gather_sequence(vectors, inverse, stack.offsets[i], sequences, mask)

    def accumulate(
        self,
        grad_pooled: NDArray[np.float32],
        grad_sequences: Mapping[str, NDArray[np.float32]],
        inverse: NDArray[np.int32],
        stack: Stack,
        sums: NDArray[np.float32],
    ) -> None:
        """Adds every occurrence's gradient to its id's sum: pooled slots first, then sequence after sequence.

        Args:
          grad_pooled: `[P, W]` float32, read-only.
          grad_sequences: by slot `[P, L, D]` float32.
          inverse, stack: as `pool`.
          sums: `[U, D]` float32; mutated.
        """
        if self._pooled:
            offsets = stack.offsets[: self._pooled]
            pooling.accumulate_pooled(grad_pooled, inverse, stack.scales, offsets, self._starts, sums)
        for i, sequence in enumerate(self._sequences, self._pooled):
            gradients = as_input(grad_sequences[sequence.name], np.float32)
            pooling.accumulate_sequence(gradients, inverse, stack.offsets[i], sums)
