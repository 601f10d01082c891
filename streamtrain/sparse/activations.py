"""What the sparse half hands to the dense half: pooled vectors and padded sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from streamtrain.layout import FLAT, Layout, Shared
from streamtrain.samples.batch import SampleBatch
from streamtrain.samples.schema import LEAF
from streamtrain.sparse.memory import aligned_empty

__all__ = ["ActivationBuffers", "Gradients", "SparseActivations", "allocate", "begin_rows"]


@dataclass(frozen=True, slots=True)
class SparseActivations:
    """The vectors of a minibatch of B samples, padded to P rows, at levels above them to P_l.

    Attributes:
      pooled: `[P, W_leaf]` float32, C-contiguous, on a 64-byte boundary; rows from B on are zeros. Without levels above
        the leaves, W_leaf is W.
      sequences: by slot, `[P_l, L, D]` float32 vectors, front-aligned and oldest first, and their `[P_l, L]` float32 mask
        of ones and zeros; both C-contiguous, on 64-byte boundaries, zeros where there is no id.
      shared: of the layout's levels above the leaves; arrays as `pooled`.
    """

    pooled: NDArray[np.float32]
    sequences: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
    shared: Shared = FLAT

    def pooled_at(self, levels: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The pooled arrays by level, those above the leaves first; `levels` are the layout's."""
        return {**dict(zip(levels, self.shared.pooled, strict=True)), LEAF: self.pooled}


@dataclass(frozen=True, slots=True)
class Gradients:
    """Those of activations, as kernels take them: read-only and contiguous.

    Attributes:
      pooled: by level, of its pooled array.
      sequences: by slot, of its vectors.
    """

    pooled: dict[str, NDArray[np.float32]]
    sequences: dict[str, NDArray[np.float32]]


class ActivationBuffers:
    """Hands out the same memory minibatch after minibatch, which spares the page faults of fresh megabytes."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._capacity = 0
        self._buffers = allocate(layout, 0, [0] * len(layout.levels))

    def take(self, padded: int, nodes: Sequence[int] = ()) -> SparseActivations:
        """Uninitialised arrays of `padded` rows, valid until the next call. As large as the largest ever asked for.

        Args:
          padded: P, rows of the leaves.
          nodes: P_l, rows of each of the layout's levels above, at most P.
        """
        if padded > self._capacity:
            # No level has more nodes than there are leaves, and memory that is not touched costs nothing.
            self._capacity = padded
            self._buffers = allocate(self._layout, padded, [padded] * len(self._layout.levels))
        held, rows = self._buffers, dict(zip((*self._layout.levels, LEAF), (*nodes, padded), strict=True))
        return SparseActivations(
            held.pooled[:padded],
            {
                s.name: (
                    held.sequences[s.name][0][: rows[s.level]],
                    held.sequences[s.name][1][: rows[s.level]],
                )
                for s in self._layout.sequences
            },
            Shared(
                tuple(array[:count] for array, count in zip(held.shared.pooled, nodes, strict=True)),
                tuple(
                    array[:count]
                    for array, count in zip(held.shared.parents, (*nodes, padded)[1:], strict=True)
                ),
            ),
        )


def allocate(layout: Layout, padded: int, nodes: Sequence[int] = ()) -> SparseActivations:
    """Uninitialised activations; arguments as `ActivationBuffers.take`."""
    rows = dict(zip((*layout.levels, LEAF), (*nodes, padded), strict=True))
    return SparseActivations(
        aligned_empty((padded, layout.width(LEAF)), np.float32),
        {
            s.name: (
                aligned_empty((rows[s.level], s.length_max, s.dim), np.float32),
                aligned_empty((rows[s.level], s.length_max), np.float32),
            )
            for s in layout.sequences
        },
        Shared(
            tuple(aligned_empty((rows[level], layout.width(level)), np.float32) for level in layout.levels),
            tuple(aligned_empty((count,), np.int32) for count in [*rows.values()][1:]),
        ),
    )


def begin_rows(batch: SampleBatch, levels: Sequence[str], out: SparseActivations) -> None:
    """Writes what follows from the tree alone: zeros into padding rows of pooled arrays, and parents.

    Args:
      batch: of no more samples and nodes than `out` has rows.
      levels: of the layout.
      out: mutated.
    """
    for level, pooled in out.pooled_at(levels).items():
        pooled[batch.rows(level) :] = 0
    for (level, below), parents in zip(pairwise([*levels, LEAF]), out.shared.parents, strict=True):
        found = batch.parents(level, below)
        parents[: len(found)] = found
        # Any node would do; this one keeps them ascending.
        parents[len(found) :] = found[-1] if len(found) else 0
