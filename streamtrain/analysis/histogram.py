"""A histogram of numbers from 0 on, of any range, in bounded memory and one pass."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bar", "Histogram"]

_PARTS = 16
_EXPONENT_MIN, _EXPONENT_MAX = -63, 64


@dataclass(frozen=True, slots=True)
class Bar:
    """`count` numbers are in [low, high); both are 0 for the bar of zeros."""

    low: float
    high: float
    count: int


class Histogram:
    """Counts numbers by powers of two, each cut into 16 equal parts, as HdrHistogram does (Gil Tene, 2012).

    So a quantile is at most 1/16 too low, and integers below 32 are exact. Numbers below 2^-64 count as that, those from
    2^64 on as just below it; `minimum`, `maximum` and `total` are of the numbers as they came.

    Attributes:
      count: numbers added.
      total: their sum.
      minimum, maximum: 0 where there is none.
    """

    def __init__(self) -> None:
        self._bins = np.zeros(1 + _PARTS * (_EXPONENT_MAX - _EXPONENT_MIN + 1), np.int64)
        self.count, self.total, self.minimum, self.maximum = 0, 0.0, 0.0, 0.0

    def add(self, values: NDArray[np.generic]) -> None:
        """Adds numbers, `[N]`, finite and >= 0."""
        if not len(values):
            return
        numbers = values.astype(np.float64)
        mantissas, exponents = np.frexp(numbers)
        beyond = exponents > _EXPONENT_MAX
        parts = np.where(beyond, _PARTS - 1, np.floor((mantissas - 0.5) * (2 * _PARTS)))
        parts[exponents < _EXPONENT_MIN] = 0
        octaves = np.clip(exponents, _EXPONENT_MIN, _EXPONENT_MAX) - _EXPONENT_MIN
        places = np.where(numbers == 0, 0, 1 + octaves * _PARTS + parts).astype(np.int64)
        self._bins += np.bincount(places, minlength=len(self._bins))
        low, high = float(numbers.min()), float(numbers.max())
        self.minimum = low if not self.count else min(self.minimum, low)
        self.maximum = max(self.maximum, high)
        self.total += float(numbers.sum())
        self.count += len(numbers)

    @property
    def mean(self) -> float:
        """0 where there is no number."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, share: float) -> float:
        """The number below or at which `share` of them are, at most 1/16 too low; 0 where there is none."""
        rank = max(math.ceil(share * self.count), 1)
        found = int(np.searchsorted(np.cumsum(self._bins), rank)) if self.count else 0
        if found == 0:
            return 0.0
        octave, part = divmod(found - 1, _PARTS)
        edge = math.ldexp(0.5 + part / (2 * _PARTS), octave + _EXPONENT_MIN)
        return min(max(edge, self.minimum), self.maximum)

    def bars(self) -> list[Bar]:
        """By powers of two from the smallest to the largest that occurs, empty ones between included; zeros first."""
        octaves = self._bins[1:].reshape(-1, _PARTS).sum(axis=1)
        zeros = [Bar(0.0, 0.0, int(self._bins[0]))] if self._bins[0] else []
        used = np.flatnonzero(octaves)
        if not len(used):
            return zeros
        spanned = range(int(used[0]), int(used[-1]) + 1)
        exponents = [octave + _EXPONENT_MIN for octave in spanned]
        return zeros + [
            Bar(math.ldexp(0.5, exponent), math.ldexp(1.0, exponent), int(octaves[octave]))
            for octave, exponent in zip(spanned, exponents, strict=True)
        ]
