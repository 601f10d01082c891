"""What the sparse half hands to the dense half: pooled vectors and padded sequences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamtrain.layout import Layout
from streamtrain.sparse.memory import aligned_empty

__all__ = ["ActivationBuffers", "SparseActivations"]


@dataclass(frozen=True, slots=True)
class SparseActivations:
    """The vectors of a minibatch of B samples, padded to P rows.

    Attributes:
      pooled: `[P, W]` float32, C-contiguous, on a 64-byte boundary; rows from B on are zeros.
      sequences: by slot, `[P, L, D]` float32 vectors, front-aligned and oldest first, and their `[P, L]` float32 mask
        of ones and zeros; both C-contiguous, on 64-byte boundaries, zeros where there is no id.
    """

    pooled: NDArray[np.float32]
    sequences: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]


class ActivationBuffers:
    """Hands out the same memory minibatch after minibatch, which spares the page faults of fresh megabytes."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._capacity = 0
        self._buffers = allocate(layout, 0)

    def take(self, padded: int) -> SparseActivations:
        """Uninitialised arrays of `padded` rows, valid until the next call. As large as the largest ever asked for."""
        if padded > self._capacity:
            self._capacity, self._buffers = padded, allocate(self._layout, padded)
        return SparseActivations(
            self._buffers.pooled[:padded],
            {name: (v[:padded], m[:padded]) for name, (v, m) in self._buffers.sequences.items()},
        )


def allocate(layout: Layout, padded: int) -> SparseActivations:
    """Uninitialised activations of `padded` rows."""
    return SparseActivations(
        aligned_empty((padded, layout.pooled_width), np.float32),
        {
            s.name: (
                aligned_empty((padded, s.length_max, s.dim), np.float32),
                aligned_empty((padded, s.length_max), np.float32),
            )
            for s in layout.sequences
        },
    )
