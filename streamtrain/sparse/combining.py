"""Kernels between the rows of a hashed table and the vectors that they make, and the way back of gradients.

Common arguments:

- `rows`: `[V, R]` float32, the distinct rows' weights.
- `inverse`: `[U * P]` int32, id after id and in an id part after part, the position of its row in `rows`.
- `vectors`, `gradients`: `[U, D]` float32, of the distinct ids; D is R, or P * R where rows stand side by side.
- `sums`: `[V, R]` float32, the gradients of the rows.

Sums and products are float32, in the order of ids, and in an id of parts. Arrays do not overlap.

Source: Shi et al., "Compositional embeddings using complementary partitions", KDD 2020, section 4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamtrain.sparse.jit import kernel
from streamtrain.sparse.tables import Combine

__all__ = ["COMBINERS", "Combiner", "count_occurrences"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


@kernel
def add(rows: Floats, inverse: Ints, vectors: Floats) -> None:
    """Overwrites each of `vectors` with the sum of its rows."""
    parts = inverse.size // max(vectors.shape[0], 1)
    for u in range(vectors.shape[0]):
        vector, first = vectors[u], rows[inverse[u * parts]]
        for d in range(vector.size):
            vector[d] = first[d]
        for p in range(1, parts):
            row = rows[inverse[u * parts + p]]
            for d in range(vector.size):
                vector[d] += row[d]


@kernel
def add_back(rows: Floats, inverse: Ints, gradients: Floats, sums: Floats) -> None:
    """Adds each id's gradient to those of its rows; `rows` are not read."""
    parts = inverse.size // max(gradients.shape[0], 1)
    for n in range(inverse.size):
        total, gradient = sums[inverse[n]], gradients[n // parts]
        for d in range(gradient.size):
            total[d] += gradient[d]


@kernel
def concat(rows: Floats, inverse: Ints, vectors: Floats) -> None:
    """Overwrites each of `vectors` with its rows side by side."""
    parts, width = inverse.size // max(vectors.shape[0], 1), rows.shape[1]
    for u in range(vectors.shape[0]):
        for p in range(parts):
            row, out = rows[inverse[u * parts + p]], vectors[u, p * width : (p + 1) * width]
            for d in range(width):
                out[d] = row[d]


@kernel
def concat_back(rows: Floats, inverse: Ints, gradients: Floats, sums: Floats) -> None:
    """Adds to the gradient of each row its piece of each id's; of `rows` only the shape is read."""
    parts, width = inverse.size // max(gradients.shape[0], 1), rows.shape[1]
    for u in range(gradients.shape[0]):
        for p in range(parts):
            total, gradient = sums[inverse[u * parts + p]], gradients[u, p * width : (p + 1) * width]
            for d in range(width):
                total[d] += gradient[d]


@kernel
def multiply(rows: Floats, inverse: Ints, vectors: Floats) -> None:
    """Overwrites each of `vectors` with the product of its rows, element by element."""
    parts = inverse.size // max(vectors.shape[0], 1)
    for u in range(vectors.shape[0]):
        vector, first = vectors[u], rows[inverse[u * parts]]
        for d in range(vector.size):
            vector[d] = first[d]
        for p in range(1, parts):
            row = rows[inverse[u * parts + p]]
            for d in range(vector.size):
                vector[d] *= row[d]


@kernel
def multiply_back(rows: Floats, inverse: Ints, gradients: Floats, sums: Floats) -> None:
    """Adds to the gradient of each row each id's, times that id's other rows."""
    parts = inverse.size // max(gradients.shape[0], 1)
    factors = np.empty(gradients.shape[1], np.float32)
    for u in range(gradients.shape[0]):
        for p in range(parts):
            # Not the product over all divided by this one, which may be 0.
            for d in range(factors.size):
                factors[d] = gradients[u, d]
            for q in range(parts):
                if q != p:
                    row = rows[inverse[u * parts + q]]
                    for d in range(factors.size):
                        factors[d] *= row[d]
            total = sums[inverse[u * parts + p]]
            for d in range(factors.size):
                total[d] += factors[d]


@kernel
def count_occurrences(occurrences: NDArray[np.uint32], inverse: Ints, counts: NDArray[np.uint32]) -> None:
    """Adds up how often each row occurs.

    Args:
      occurrences: `[U]` uint32, of the ids.
      inverse: `[U * P]` int32.
      counts: `[V]` uint32; overwritten.
    """
    parts = inverse.size // max(occurrences.size, 1)
    for v in range(counts.size):
        counts[v] = np.uint32(0)
    for n in range(inverse.size):
        counts[inverse[n]] += occurrences[n // parts]


@dataclass(frozen=True, slots=True)
class Combiner:
    """One way to make a vector of rows.

    Attributes:
      forward: (rows, inverse, vectors): overwrites `vectors`.
      backward: (rows, inverse, gradients, sums): adds to `sums`.
    """

    forward: Callable[[Floats, Ints, Floats], None]
    backward: Callable[[Floats, Ints, Floats, Floats], None]


COMBINERS: dict[Combine, Combiner] = {
    "add": Combiner(add, add_back),
    "concat": Combiner(concat, concat_back),
    "multiply": Combiner(multiply, multiply_back),
}
