"""Decay: rows fade between their updates, in closed form when they are next looked at.

At step s a row that was last updated at step t has been multiplied once at each multiple of N in (t, s]: p times, with
p = floor(s / N) - floor(t / N). So its weights are w * f and its statistics v * g, where f and g are float32 of the
factors' p-th powers, which are taken in float64 by repeated squaring. Steps of rows are modulo 2^32: t is the newest step
up to s that agrees with what the row holds. What is stored changes at an update alone, so cuts and restarts have no say.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamtrain.sparse.jit import kernel
from streamtrain.sparse.lifecycle_settings import Decay

__all__ = ["RowDecay", "fade", "fade_rows"]

Words = NDArray[np.float32]
Bits = NDArray[np.uint32]
Rows = NDArray[np.int32]


class RowDecay:
    """The decay of one table's rows.

    Args:
      settings: how much, how often.
      statistics: floats of optimizer state, from the first on, that decay.
    """

    def __init__(self, settings: Decay, statistics: int = 0) -> None:
        self._every, self._statistics = settings.every_steps, statistics
        self._weights, self._slots = float(settings.weights), float(settings.slots)

    def fade(self, vectors: NDArray[np.float32], bits: Bits, rows: Rows, step: int) -> None:
        """Multiplies weights (`[N, D]` float32) that were gathered from rows (`[N]` int32), as they are at `step`."""
        if self._weights < 1:
            fade(vectors, bits, rows, step, self._every, self._weights)

    def fade_rows(self, words: Words, bits: Bits, dim: int, rows: Rows, step: int, before: Bits) -> None:
        """Multiplies rows in place, as they are at `step`, having copied them to `before`; their last step stays."""
        parameters = (self._every, self._weights, self._slots, self._statistics)
        fade_rows(words, bits, dim, rows, step, before, *parameters)

    def fade_columns(
        self,
        weights: NDArray[np.float32],
        slots: NDArray[np.float32],
        last_steps: NDArray[np.uint32],
        step: int,
    ) -> None:
        """Multiplies copies of rows (`[N, D]`, `[N, K]` float32) that were last updated at `last_steps`, in place."""
        bits, rows = np.zeros((len(last_steps), 2), np.uint32), np.arange(len(last_steps), dtype=np.int32)
        bits[:, 1] = last_steps
        if self._weights < 1:
            fade(weights, bits, rows, step, self._every, self._weights)
        if self._slots < 1 and self._statistics:
            statistics = np.ascontiguousarray(slots[:, : self._statistics])
            fade(statistics, bits, rows, step, self._every, self._slots)
            slots[:, : self._statistics] = statistics


@kernel
def factor_of(factor: float, last_step: np.uint32, step: int, every: int) -> np.float32:
    """The factor's power for the multiples of `every` since `last_step`, as float32."""
    age = (np.int64(step) - np.int64(last_step)) & np.int64(0xFFFFFFFF)
    exponent = step // every - (step - age) // every
    result = 1.0
    while exponent > 0:
        if exponent & 1:
            result *= factor
        factor *= factor
        exponent >>= 1
    return np.float32(result)


@kernel
def fade(vectors: NDArray[np.float32], bits: Bits, rows: Rows, step: int, every: int, factor: float) -> None:
    """Multiplies `vectors` (`[N, D]` float32) by what has become of their rows' factor; rows below 0 are passed over.

    Args:
      bits: `[C, >= 2]` uint32, whose last column is the rows' last step.
      rows: `[N]` int32.
    """
    tail = bits.shape[1] - 1
    for r in range(rows.size):
        if rows[r] >= 0:
            now, vector = factor_of(factor, bits[rows[r], tail], step, every), vectors[r]
            for d in range(vector.size):
                vector[d] *= now


@kernel
def fade_rows(
    words: Words,
    bits: Bits,
    dim: int,
    rows: Rows,
    step: int,
    before: Bits,
    every: int,
    weights: float,
    slots: float,
    statistics: int,
) -> None:
    """Multiplies the weights and the first `statistics` slots of rows, in place; rows below 0 are passed over.

    Args:
      words: `[C, D + K + 2]` float32; bits: the same memory as uint32; mutated.
      before: `[>= N, D + K + 2]` uint32; overwritten with what the rows were.
    """
    tail = bits.shape[1] - 1
    for r in range(rows.size):
        if rows[r] < 0:
            continue
        old, kept = bits[rows[r]], before[r]
        for w in range(kept.size):
            kept[w] = old[w]
        of_weights = factor_of(weights, bits[rows[r], tail], step, every)
        of_slots = factor_of(slots, bits[rows[r], tail], step, every)
        row = words[rows[r], :dim]
        for d in range(dim):
            row[d] *= of_weights
        row = words[rows[r], dim : dim + statistics]
        for k in range(statistics):
            row[k] *= of_slots
