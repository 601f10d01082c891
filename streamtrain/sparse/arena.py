"""The arena: the rows of an embedding table in one piece of memory, [weights D | slots K | count | last step] each."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamtrain.log.record import TableRows
from streamtrain.sparse.copies import Copies
from streamtrain.sparse.crew import pieces, share
from streamtrain.sparse.jit import kernel, prefetch_row
from streamtrain.sparse.memory import as_input, give_back, reserve

__all__ = ["Arena", "fill_absent", "gather", "gather_weights", "scatter", "start_tails"]

AHEAD = 16
FLOAT = 4


class Arena:
    """Rows of 4 (D + K + 2) bytes that never move. One thread may write; others may read rows not being written.

    Attributes:
      words: `[rows_max, D + K + 2]` float32.
      bits: the same memory as uint32, for counts and last steps.
    """

    def __init__(self, name: str, dim: int, slots: int, rows_max: int) -> None:
        """Args: name: for error texts; dim: D; slots: K. Raises: ConfigError."""
        self.dim, self.slots = dim, slots
        self.words: NDArray[np.float32] = reserve((rows_max, dim + slots + 2), np.float32, name)
        self.bits: NDArray[np.uint32] = self.words.view(np.uint32)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.words.itemsize * self.words.shape[1]

    def gather(
        self, ids: NDArray[np.uint64], rows: NDArray[np.int32], memory: Copies | None = None
    ) -> TableRows:
        """A copy of `rows`, which hold `ids`; in `memory` where the caller has one."""
        count = len(rows)
        weights, slots, counts, last_steps = (memory or Copies()).empty(
            [
                ((count, self.dim), np.float32),
                ((count, self.slots), np.float32),
                ((count,), np.uint32),
                ((count,), np.uint32),
            ]
        )

        def copy(first: int, end: int) -> None:
            own = slice(first, end)
            columns = weights[own], slots[own], counts[own], last_steps[own]
            gather(self.words, self.bits, rows[own], *columns)

        share(copy, pieces(count))
        return TableRows(ids, weights, slots, counts, last_steps)

    def move(self, sources: NDArray[np.int32], targets: NDArray[np.int32]) -> None:
        """Copies row `sources[m]` over row `targets[m]`, one after the other."""
        move(self.bits, sources, targets)

    def give_back(self, first: int, end: int) -> None:
        """Gives the memory of rows first <= row < end back, which are in use no more."""
        give_back(self.words, first, end)

    def scatter(self, rows: NDArray[np.int32], values: TableRows, wanted: NDArray[np.bool_]) -> None:
        """Overwrites `rows[i]` with the i-th of `values` wherever `wanted[i]`."""
        scatter(
            self.words,
            self.bits,
            rows,
            wanted,
            as_input(values.weights, np.float32),
            as_input(values.slots, np.float32),
            as_input(values.counts, np.uint32),
            as_input(values.last_steps, np.uint32),
        )


@kernel
def gather_weights(words: NDArray[np.float32], rows: NDArray[np.int32], vectors: NDArray[np.float32]) -> None:
    """Copies the weights of rows out.

    Args:
      words: `[C, D + K + 2]` float32.
      rows: `[R]` int32; those below 0 (no row) are read as row 0, for the caller to overwrite.
      vectors: `[R, D]` float32; overwritten.
    """
    dim = vectors.shape[1]
    for r in range(rows.size):
        prefetch_row(words, rows, r + AHEAD, FLOAT * dim)
        weights, vector = words[max(rows[r], 0), :dim], vectors[r]
        for d in range(dim):
            vector[d] = weights[d]


@kernel
def fill_absent(rows: NDArray[np.int32], vector: NDArray[np.float32], vectors: NDArray[np.float32]) -> None:
    """Writes `vector` (`[D]` float32) to `vectors[r]` (`[R, D]` float32) wherever `rows[r]` is below 0."""
    for r in range(rows.size):
        if rows[r] < 0:
            out = vectors[r]
            for d in range(vector.size):
                out[d] = vector[d]


@kernel
def gather(
    words: NDArray[np.float32],
    bits: NDArray[np.uint32],
    rows: NDArray[np.int32],
    weights: NDArray[np.float32],
    slots: NDArray[np.float32],
    counts: NDArray[np.uint32],
    last_steps: NDArray[np.uint32],
) -> None:
    """Copies rows out, column by column.

    Args:
      words: `[C, D + K + 2]` float32; bits: the same memory as uint32.
      rows: `[R]` int32.
      weights, slots, counts, last_steps: `[R, D]`, `[R, K]` float32, `[R]`, `[R]` uint32; overwritten.
    """
    dim, held = weights.shape[1], slots.shape[1]
    for r in range(rows.size):
        prefetch_row(words, rows, r + AHEAD, words.strides[0])
        row = rows[r]
        for d in range(dim):
            weights[r, d] = words[row, d]
        for k in range(held):
            slots[r, k] = words[row, dim + k]
        counts[r] = bits[row, dim + held]
        last_steps[r] = bits[row, dim + held + 1]


@kernel
def scatter(
    words: NDArray[np.float32],
    bits: NDArray[np.uint32],
    rows: NDArray[np.int32],
    wanted: NDArray[np.bool_],
    weights: NDArray[np.float32],
    slots: NDArray[np.float32],
    counts: NDArray[np.uint32],
    last_steps: NDArray[np.uint32],
) -> None:
    """Copies rows in where `wanted` (`[R]` bool); the other arguments as `gather`, with `words` mutated."""
    dim, held = weights.shape[1], slots.shape[1]
    for r in range(rows.size):
        if not wanted[r]:
            continue
        row = rows[r]
        for d in range(dim):
            words[row, d] = weights[r, d]
        for k in range(held):
            words[row, dim + k] = slots[r, k]
        bits[row, dim + held] = counts[r]
        bits[row, dim + held + 1] = last_steps[r]


@kernel
def move(bits: NDArray[np.uint32], sources: NDArray[np.int32], targets: NDArray[np.int32]) -> None:
    """Copies rows of `bits` (`[C, D + K + 2]` uint32, mutated) in order: a target may be a later source."""
    for m in range(sources.size):
        for word in range(bits.shape[1]):
            bits[targets[m], word] = bits[sources[m], word]


@kernel
def start_tails(
    bits: NDArray[np.uint32], rows: NDArray[np.int32], fresh: NDArray[np.bool_], last_step: np.uint32
) -> None:
    """Sets count to 0 and the last step of the fresh rows: a reused row holds what was there before."""
    tail = bits.shape[1] - 2
    for i in range(rows.size):
        if fresh[i]:
            bits[rows[i], tail] = np.uint32(0)
            bits[rows[i], tail + 1] = last_step
