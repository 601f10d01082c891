"""How a row starts: from a hash of (seed, table, id) alone, so that every process starts it with the same bits.

docs/initial-rows.md has the law for other languages, and test vectors; it never changes.

For the id `x` in the table `name` of a model with seed `s`, all modulo 2^64:

    mix(z)       z ^= z >> 30; z *= 0xBF58476D1CE4E5B9; z ^= z >> 27; z *= 0x94D049BB133111EB; z ^= z >> 31
    table_key  = mix(mix(s + G) ^ XXH64(name in UTF-8, seed 0))         G = 0x9E3779B97F4A7C15
    key(x)     = mix(table_key ^ mix(x + G))
    word(x, j) = mix(key(x) + (j + 1) * G)                              SplitMix64 begun at key(x)

The vector that unadmitted ids share is that of id 0 with mix(table_key + G) in place of table_key.

- `constant`: every weight is float32(value).
- `uniform`: weight d is float32(scale * (2 k - 2^24) / 2^24), k the upper 24 bits of word(x, d).
- `normal`: weight d takes 16 bits, lane d mod 4 of word(x, d div 4), counted from the lowest. Its lower 15 bits are
  i, its bit 15 is the sign (1: negative); the weight is float32(std * (+-QUANTILES[i])), where QUANTILES[i] is
  float32 of the normal distribution's quantile at 1/2 + (2 i + 1) / 2^17. So weights are 65,536 equally likely
  values up to 4.17 standard deviations from 0; a table look-up costs less than logarithms and roots, and no
  mathematics library of any platform has a say in it.

Products are in float64 and rounded to float32 once.

Source of mix and word: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, with the
constants of Vigna's splitmix64.c.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from streamtrain.sparse.jit import kernel
from streamtrain.sparse.settings import AnyInit, Constant, Normal, Uniform

__all__ = [
    "Initializer",
    "admission_key",
    "fill_constant",
    "fill_normal",
    "fill_uniform",
    "normal_quantiles",
    "shared_key",
    "table_key",
]

MASK = (1 << 64) - 1
GAMMA = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)
S27, S30, S31, S40 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(40)
LANES = np.uint64(3)
LANE_BITS = np.uint64(16)
SIGN = np.uint64(0x8000)
MAGNITUDE = np.uint64(0x7FFF)
TWO_24 = 16777216.0


def table_key(seed: int, table: str) -> int:
    """The 64-bit key that a table's rows start from."""
    return _mix(_mix(seed + int(GAMMA)) ^ xxhash.xxh64_intdigest(table.encode()))


def shared_key(seed: int, table: str) -> int:
    """The key, in place of the table's, of the vector that unadmitted ids share."""
    return _mix(table_key(seed, table) + int(GAMMA))


def admission_key(seed: int, table: str) -> int:
    """The key of what admission decides by chance, and of where its filter counts."""
    return _mix(table_key(seed, table) + 2 * int(GAMMA))


def _mix(z: int) -> int:
    z &= MASK
    z = (z ^ z >> 30) * int(MIX_1) & MASK
    z = (z ^ z >> 27) * int(MIX_2) & MASK
    return z ^ z >> 31


@cache
def normal_quantiles() -> NDArray[np.float32]:
    """The upper half of the normal distribution as 32,768 equally likely values, ascending; read-only."""
    inverse = NormalDist().inv_cdf
    quantiles = np.array([inverse(0.5 + (2 * i + 1) / 2**17) for i in range(2**15)], np.float32)
    quantiles.flags.writeable = False
    return quantiles


class Initializer:
    """Writes initial weights. For any number of threads."""

    def __init__(self, settings: AnyInit, seed: int, table: str, *, shared: bool = False) -> None:
        """Args:
        settings: the distribution.
        seed: the model's.
        table: the table's name.
        shared: of the vector that ids share as long as they are not admitted: it is that of id 0.
        """
        self.settings = settings
        key = np.uint64(shared_key(seed, table) if shared else table_key(seed, table))
        self._fill: Callable[..., None]
        self._parameters: tuple[Any, ...]
        match settings:
            case Constant(value=value):
                self._fill, self._parameters = fill_constant, (np.float32(value),)
            case Uniform(scale=scale):
                self._fill, self._parameters = fill_uniform, (key, float(scale))
            case Normal(std=std):
                self._fill, self._parameters = fill_normal, (key, float(std), normal_quantiles())

    def fill(
        self,
        words: NDArray[np.float32],
        dim: int,
        ids: NDArray[np.uint64],
        rows: NDArray[np.int32],
        fresh: NDArray[np.bool_],
    ) -> None:
        """Writes the initial weights of `ids[i]` to `words[rows[i], :dim]` wherever `fresh[i]`.

        Args:
          words: `[C, >= dim]` float32; mutated.
          ids, rows, fresh: `[N]`.
        """
        self._fill(words, dim, ids, rows, fresh, *self._parameters)


@kernel
def mix(z: np.uint64) -> np.uint64:
    z = (z ^ (z >> S30)) * MIX_1
    z = (z ^ (z >> S27)) * MIX_2
    return z ^ (z >> S31)


@kernel
def fill_constant(
    words: NDArray[np.float32],
    dim: int,
    ids: NDArray[np.uint64],
    rows: NDArray[np.int32],
    fresh: NDArray[np.bool_],
    value: np.float32,
) -> None:
    """Writes `value` to the weights of the fresh rows; arguments as `Initializer.fill`."""
    for i in range(ids.size):
        if fresh[i]:
            for d in range(dim):
                words[rows[i], d] = value


@kernel
def fill_uniform(
    words: NDArray[np.float32],
    dim: int,
    ids: NDArray[np.uint64],
    rows: NDArray[np.int32],
    fresh: NDArray[np.bool_],
    key: np.uint64,
    scale: float,
) -> None:
    """Writes uniform weights in [-scale, scale) to the fresh rows; arguments as `Initializer.fill`, the law as above."""
    for i in range(ids.size):
        if fresh[i]:
            word = mix(key ^ mix(ids[i] + GAMMA))
            for d in range(dim):
                word += GAMMA
                k = np.int64(mix(word) >> S40)
                words[rows[i], d] = np.float32(scale * ((2.0 * k - TWO_24) / TWO_24))


@kernel
def fill_normal(
    words: NDArray[np.float32],
    dim: int,
    ids: NDArray[np.uint64],
    rows: NDArray[np.int32],
    fresh: NDArray[np.bool_],
    key: np.uint64,
    std: float,
    quantiles: NDArray[np.float32],
) -> None:
    """Writes normal weights to the fresh rows; arguments as `Initializer.fill`, the law as above."""
    for i in range(ids.size):
        if fresh[i]:
            word = mix(key ^ mix(ids[i] + GAMMA))
            lanes = np.uint64(0)
            for d in range(dim):
                if np.uint64(d) & LANES == np.uint64(0):
                    word += GAMMA
                    lanes = mix(word)
                weight = np.float32(std * np.float64(quantiles[np.int64(lanes & MAGNITUDE)]))
                words[rows[i], d] = -weight if lanes & SIGN else weight
                lanes >>= LANE_BITS
