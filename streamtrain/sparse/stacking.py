"""The slots of one table, stacked: one kernel call a table, however many slots it has."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from streamtrain.layout import Layout, PooledColumns, Sequence
from streamtrain.samples.batch import SampleBatch
from streamtrain.samples.schema import LEAF
from streamtrain.sparse import pooling
from streamtrain.sparse.activations import Gradients, SparseActivations
from streamtrain.sparse.crew import pieces, share

__all__ = ["Stack", "TableSlots"]


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the ids of a table's pooled slots at one level, or of one sequence, begin.

    Attributes:
      offsets: `[S, R + 1]` int64, by slot where in `Stack.values` each row begins; R samples, or nodes of the level.
      leaves: `[R]` int64, the samples under each node; None: each row is a sample.
    """

    offsets: NDArray[np.int64]
    leaves: NDArray[np.int64] | None


@dataclass(frozen=True, slots=True)
class Stack:
    """The ids of a table's slots in a minibatch, slot after slot: pooled ones first, then sequences.

    Attributes:
      values: `[N]` uint64.
      pooled: by level that pooled slots belong to, the root's first, where their rows begin.
      sequences: where the rows of each sequence begin, S = 1.
      scales: float32, one for each of the pooled slots' ids: its share in the pooled vector.
    """

    values: NDArray[np.uint64]
    pooled: tuple[Rows, ...]
    sequences: tuple[Rows, ...]
    scales: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Group:
    """The pooled slots of one level: their places among the table's slots, and where their columns begin."""

    level: str
    places: tuple[int, ...]
    starts: NDArray[np.int64]
    means: NDArray[np.bool_]


class TableSlots:
    """Which slots of the layout a table serves, and how. Immutable."""

    def __init__(self, layout: Layout, table: str) -> None:
        pooled = [columns for columns in layout.pooled if columns.table == table]
        self._levels = layout.levels
        self._sequences: tuple[Sequence, ...] = tuple(s for s in layout.sequences if s.table == table)
        self._names = (*(c.name for c in pooled), *(s.name for s in self._sequences))
        self._pooled = len(pooled)
        self._weighted = tuple(i for i, columns in enumerate(pooled) if columns.pooling == "weighted")
        self._groups = tuple(
            _group(level, pooled)
            for level in (*layout.levels, LEAF)
            if any(columns.level == level for columns in pooled)
        )

    def stack(self, batch: SampleBatch) -> Stack:
        """Copies the ids of the table's slots into one array."""
        parts = [batch.ids[name] for name in self._names]
        values = np.concatenate([part.values for part in parts])
        ends = np.cumsum([part.offsets[-1] for part in parts])
        assert ends[-1] == len(values), (
            "the offsets of a slot do not end where its ids do; kernels check no bounds"
        )
        firsts = [0, *ends[:-1].tolist()]
        leaves = {level: batch.leaves(level) for level in batch.nodes}

        def rows(level: str, places: Iterable[int]) -> Rows:
            offsets = np.stack([parts[i].offsets for i in places])
            assert offsets.shape[1] == batch.rows(level) + 1, f"a slot has not the rows of level {level!r}"
            offsets += np.array([[firsts[i]] for i in places])
            return Rows(offsets, leaves.get(level))

        pooled = tuple(rows(group.level, group.places) for group in self._groups)
        sequences = tuple(rows(s.level, [i]) for i, s in enumerate(self._sequences, self._pooled))
        scales = np.empty(ends[self._pooled - 1] if self._pooled else 0, np.float32)
        for group, found in zip(self._groups, pooled, strict=True):
            pooling.fill_scales(found.offsets, group.means, scales)
        for i in self._weighted:
            scales[firsts[i] : ends[i]] = parts[i].weights
        return Stack(values, pooled, sequences, scales)

    @staticmethod
    def weigh(stack: Stack, inverse: NDArray[np.int32], occurrences: NDArray[np.uint32]) -> None:
        """Makes occurrences in nodes count as often as there are samples under the node.

        Args:
          stack: of the minibatch.
          inverse: `[N]` int32, by occurrence the position of its id.
          occurrences: `[U]` uint32, by id how often it stands in the stack; mutated.
        """
        for rows in (*stack.pooled, *stack.sequences):
            if rows.leaves is not None:
                pooling.count_leaves(inverse, rows.offsets, rows.leaves, occurrences)

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
          out: mutated: every row of the sequences, of the slots' pooled columns the rows that are not padding.
        """
        arrays = out.pooled_at(self._levels)
        for group, rows in zip(self._groups, stack.pooled, strict=True):
            own = vectors, inverse, stack.scales, rows.offsets, group.starts, arrays[group.level]
            ids = rows.offsets[-1, -1] - rows.offsets[0, 0]
            share(partial(pooling.pool, *own), pieces(rows.offsets.shape[1] - 1, int(ids)))
        for sequence, rows in zip(self._sequences, stack.sequences, strict=True):
            sequences, mask = out.sequences[sequence.name]
            lay_out = partial(_lay_out, vectors, inverse, rows.offsets[0], sequences, mask)
            share(lay_out, pieces(len(mask), mask.size))

    def accumulate(
        self, gradients: Gradients, inverse: NDArray[np.int32], stack: Stack, sums: NDArray[np.float32]
    ) -> None:
        """Adds every occurrence's gradient to its id's sum: pooled slots first, then sequence after sequence.

        Args:
          gradients: of the activations, read-only.
          inverse, stack: as `pool`.
          sums: `[U, D]` float32; mutated.
        """
        for group, rows in zip(self._groups, stack.pooled, strict=True):
            pooling.accumulate_pooled(
                gradients.pooled[group.level], inverse, stack.scales, rows.offsets, group.starts, sums
            )
        for sequence, rows in zip(self._sequences, stack.sequences, strict=True):
            pooling.accumulate_sequence(gradients.sequences[sequence.name], inverse, rows.offsets[0], sums)


def _lay_out(
    vectors: NDArray[np.float32],
    inverse: NDArray[np.int32],
    offsets: NDArray[np.int64],
    sequences: NDArray[np.float32],
    mask: NDArray[np.float32],
    first: int,
    end: int,
) -> None:
    """`gather_sequence` of the rows first <= i < end, of which the last may be padding."""
    last = len(offsets) - 1
    own = offsets[min(first, last) : min(end, last) + 1]
    pooling.gather_sequence(vectors, inverse, own, sequences[first:end], mask[first:end])


def _group(level: str, pooled: SequenceOf[PooledColumns]) -> _Group:
    own = [(i, columns) for i, columns in enumerate(pooled) if columns.level == level]
    return _Group(
        level,
        tuple(i for i, _ in own),
        np.array([columns.start for _, columns in own], np.int64),
        np.array([columns.pooling == "mean" for _, columns in own], np.bool_),
    )
