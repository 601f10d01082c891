"""Kernels between the vectors of ids and the arrays that the model sees: pooling, sequences, and the way back of gradients.

Common arguments:

- `vectors`: `[U, D]` float32, those of the distinct ids.
- `inverse`: `[N]` int32, by occurrence the position of its id's vector.
- `scales`: `[N]` float32, by occurrence its share in the pooled vector.
- `offsets`: `[S, R + 1]` int64, by slot where each row's occurrences begin; rows are samples, or the nodes of a level.

Arrays are C-contiguous and do not overlap. Sums are float32, begun at 0, in order: row after row, in a row
slot after slot, in a slot id after id. Going by rows reads and writes the wide arrays front to back.

Inner loops run over slices, not over indices of the whole array: so LLVM makes vector instructions of them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamtrain.sparse.jit import kernel, prefetch_row

__all__ = [
    "accumulate_pooled",
    "accumulate_sequence",
    "count_leaves",
    "fill_scales",
    "gather_sequence",
    "pool",
]

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Offsets = NDArray[np.int64]

FLOAT = 4
ZERO, ONE = np.float32(0), np.float32(1)


@kernel
def fill_scales(offsets: Offsets, means: NDArray[np.bool_], scales: Floats) -> None:
    """Writes each occurrence's share: 1 / (occurrences in the row) in slots that are means, else 1.

    Args:
      offsets: `[S, R + 1]` int64.
      means: `[S]` bool.
      scales: `[>= offsets[-1, -1]]` float32; overwritten where occurrences of these slots stand.
    """
    for s in range(offsets.shape[0]):
        for i in range(offsets.shape[1] - 1):
            first, last = offsets[s, i], offsets[s, i + 1]
            scale = ONE / np.float32(last - first) if means[s] else ONE
            for n in range(first, last):
                scales[n] = scale


@kernel
def count_leaves(
    inverse: Ints, offsets: Offsets, leaves: NDArray[np.int64], occurrences: NDArray[np.uint32]
) -> None:
    """Makes each occurrence in a node, which was counted once, count once for every sample under the node.

    Args:
      leaves: `[R]` int64, the samples under each node, >= 1.
      occurrences: `[U]` uint32, by id; mutated.
    """
    for s in range(offsets.shape[0]):
        for i in range(leaves.size):
            for n in range(offsets[s, i], offsets[s, i + 1]):
                occurrences[inverse[n]] += np.uint32(leaves[i] - 1)


@kernel
def pool(
    vectors: Floats,
    inverse: Ints,
    scales: Floats,
    offsets: Offsets,
    starts: NDArray[np.int64],
    pooled: Floats,
    first: int,
    end: int,
) -> None:
    """Sums scale times vector over each row's occurrences in each slot.

    Args:
      starts: `[S]` int64, the first of each slot's D columns in `pooled`.
      pooled: `[>= R, W]` float32; the slots' columns of the rows are overwritten.
      first, end: the rows, first <= i < end <= R; threads may take different ones at once.
    """
    dim = vectors.shape[1]
    for i in range(first, end):
        for s in range(offsets.shape[0]):
            out = pooled[i, starts[s] : starts[s] + dim]
            for d in range(dim):
                out[d] = ZERO
            # What follows is where the slot's next row begins, a whole row's work ahead.
            prefetch_row(vectors, inverse, offsets[s, i + 1], FLOAT * dim)
            for n in range(offsets[s, i], offsets[s, i + 1]):
                vector, scale = vectors[inverse[n]], scales[n]
                for d in range(dim):
                    out[d] += scale * vector[d]


@kernel
def accumulate_pooled(
    gradients: Floats,
    inverse: Ints,
    scales: Floats,
    offsets: Offsets,
    starts: NDArray[np.int64],
    sums: Floats,
) -> None:
    """Adds each occurrence's gradient to its id's sum: the transpose of `pool`.

    Args:
      gradients: `[>= R, W]` float32, of the pooled array; rows from R on are not read.
      starts: as `pool`.
      sums: `[U, D]` float32; mutated.
    """
    dim = sums.shape[1]
    for i in range(offsets.shape[1] - 1):
        for s in range(offsets.shape[0]):
            gradient = gradients[i, starts[s] : starts[s] + dim]
            prefetch_row(sums, inverse, offsets[s, i + 1], FLOAT * dim)
            for n in range(offsets[s, i], offsets[s, i + 1]):
                total = sums[inverse[n]]
                scale = scales[n]
                for d in range(dim):
                    total[d] += scale * gradient[d]


@kernel
def gather_sequence(
    vectors: Floats,
    inverse: Ints,
    offsets: NDArray[np.int64],
    sequences: Floats,
    mask: Floats,
) -> None:
    """Lays out each row's vectors front-aligned, oldest first; of more than L ids the last L count.

    Args:
      offsets: `[R + 1]` int64, this slot's.
      sequences: `[>= R, L, D]` float32; overwritten, zeros where there is no id.
      mask: `[>= R, L]` float32; overwritten with 1 where there is an id, else 0.
    """
    samples, length_max, dim = offsets.size - 1, sequences.shape[1], sequences.shape[2]
    for i in range(sequences.shape[0]):
        first = last = np.int64(0)
        if i < samples:
            last = offsets[i + 1]
            first = max(offsets[i], last - length_max)
        for k in range(last - first):
            vector, out = vectors[inverse[first + k]], sequences[i, k]
            for d in range(dim):
                out[d] = vector[d]
            mask[i, k] = ONE
        for k in range(last - first, length_max):
            mask[i, k] = ZERO
            for d in range(dim):
                sequences[i, k, d] = ZERO


@kernel
def accumulate_sequence(gradients: Floats, inverse: Ints, offsets: NDArray[np.int64], sums: Floats) -> None:
    """Adds each occurrence's gradient to its id's sum: the transpose of `gather_sequence`.

    Args:
      gradients: `[>= R, L, D]` float32, of the sequences; not read where the mask is 0.
      offsets: `[R + 1]` int64, this slot's.
      sums: `[U, D]` float32; mutated.
    """
    length_max, dim = gradients.shape[1], gradients.shape[2]
    for i in range(offsets.size - 1):
        last = offsets[i + 1]
        first = max(offsets[i], last - length_max)
        for k in range(last - first):
            total, gradient = sums[inverse[first + k]], gradients[i, k]
            for d in range(dim):
                total[d] += gradient[d]
