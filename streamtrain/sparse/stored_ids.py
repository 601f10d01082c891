"""Which ids a store may have a row of, so that it is not asked for the many that are new: a blocked Bloom filter.

A block is a cache line, 512 bits. All bits of an id lie in one block. For the id `x`, modulo 2^64, with `mix` and G as in
docs/initial-rows.md:

    h     = mix(x + G)
    block = floor((h >> 32) * blocks / 2^32)
    bits  = bits 0 to 8, 9 to 17, 18 to 26, 27 to 35 of mix(h + G)

Four bits an id are best where the filter has 6 bits for each id, and close to it from 3 bits to 12: one of 80 new ids is
asked for at 10 bits, one of 10 at 5. A filter that is full answers yes, which costs what it would without one.

Nothing can be taken out of it, and ids that expire would fill it in the end. Where it is half full, with twice the ids that it
began with, it is begun again: how often follows from how many ids come, and each time costs what filling it at a start costs.

Source: Putze, Sanders and Singler, "Cache-, hash- and space-efficient Bloom filters", WEA 2007, section 3 (blocked).
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from streamtrain.sparse.jit import kernel, prefetch
from streamtrain.sparse.memory import as_input, reserve

__all__ = ["StoredIds"]

logger = logging.getLogger(__name__)

BLOCK_BYTES = 64
HASHES = 4
AHEAD = 16
# Adding as many takes some milliseconds, for which others wait.
ADDED_AT_ONCE = 1 << 16
CROWDED = 0.5
"""Of the bits, the share that may be set before it is worth to begin again."""

GAMMA = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)
S6, S9, S27, S30, S31, S32 = (np.uint64(bits) for bits in (6, 9, 27, 30, 31, 32))
BITS, BITS_OF_WORD, ONE = np.uint64(511), np.uint64(63), np.uint64(1)


class StoredIds:
    """A set of ids in memory of fixed size. It never denies one that was added; it may affirm others. For any threads.

    Attributes:
      complete: until it is set, every id may be stored: those of a log are still being added.
      memory_bytes: what it takes.
    """

    def __init__(
        self, name: str, memory_bytes: int, refill: Callable[[StoredIds], None] | None = None
    ) -> None:
        """Begins empty.

        Args:
          name: the table's.
          memory_bytes: bound.
          refill: sees to it that all ids which the store has are added, and that the set is complete then. None: it is never
            begun again.

        Raises:
          ConfigError: there is no address space for it.
        """
        self._name, self._refill = name, refill
        self._count = max(memory_bytes // BLOCK_BYTES, 1)
        self.memory_bytes = self._count * BLOCK_BYTES
        # Setting a bit reads its word before: two threads that did it at once would lose bits.
        self._adding = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        with self._adding:
            self.complete, self._began_with, self._bits_set = False, math.nan, 0
            self._blocks = reserve(
                (self._count, BLOCK_BYTES // 8),
                np.uint64,
                f"table {self._name!r}, ids that the store may have,",
            )

    def add(self, ids: NDArray[np.uint64]) -> None:
        """Adds ids (`[N]` uint64)."""
        ids = as_input(ids, np.uint64)
        for start in range(0, len(ids), ADDED_AT_ONCE):
            with self._adding:
                self._bits_set += add(ids[start : start + ADDED_AT_ONCE], self._blocks)

    def renew(self) -> None:
        """Begins again where enough of the ids may be of no use any more; for the thread that calls `may_hold`, when the
        store has every id that was added."""
        if self._refill is None or not self.complete:
            return
        bits = 8 * self.memory_bytes
        # That so many bits are set is to be expected of so many distinct ids.
        ids = -bits / HASHES * math.log1p(-min(self._bits_set, bits - 1) / bits)
        if math.isnan(self._began_with):
            self._began_with = ids
        if self._bits_set > CROWDED * bits and ids > 2 * self._began_with:
            logger.info("table %s: the ids that the store has are read from the log again", self._name)
            self._begin()
            self._refill(self)

    def may_hold(self, ids: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which ids (`[N]` bool) may have been added; of the others it is certain that they were not."""
        if not self.complete:
            return np.ones(len(ids), np.bool_)
        found = np.empty(len(ids), np.bool_)
        look_up(as_input(ids, np.uint64), self._blocks, found)
        return found


@kernel
def mix(z: np.uint64) -> np.uint64:
    z = (z ^ (z >> S30)) * MIX_1
    z = (z ^ (z >> S27)) * MIX_2
    return z ^ (z >> S31)


@kernel
def block_of(hash: np.uint64, blocks: int) -> np.int64:
    return np.int64(((hash >> S32) * np.uint64(blocks)) >> S32)


@kernel
def add(ids: NDArray[np.uint64], filter: NDArray[np.uint64]) -> int:
    """Sets the bits of ids; returns how many were not set before.

    Args:
      ids: `[N]` uint64, read-only.
      filter: `[B, 8]` uint64, B below 2^32; mutated.
    """
    blocks, fresh = filter.shape[0], 0
    for i in range(ids.size):
        prefetch(filter, block_of(mix(ids[min(i + AHEAD, ids.size - 1)] + GAMMA), blocks), 0)
        hash = mix(ids[i] + GAMMA)
        block, places = filter[block_of(hash, blocks)], mix(hash + GAMMA)
        for _ in range(HASHES):
            place = places & BITS
            word, bit = np.int64(place >> S6), ONE << (place & BITS_OF_WORD)
            if block[word] & bit == np.uint64(0):
                block[word] |= bit
                fresh += 1
            places >>= S9
    return fresh


@kernel
def look_up(ids: NDArray[np.uint64], filter: NDArray[np.uint64], found: NDArray[np.bool_]) -> None:
    """Whether all bits of an id are set.

    Args:
      ids, filter: as `add`; not mutated.
      found: `[N]` bool; overwritten.
    """
    blocks = filter.shape[0]
    for i in range(ids.size):
        prefetch(filter, block_of(mix(ids[min(i + AHEAD, ids.size - 1)] + GAMMA), blocks), 0)
        hash = mix(ids[i] + GAMMA)
        block, places = filter[block_of(hash, blocks)], mix(hash + GAMMA)
        all_set = True
        for _ in range(HASHES):
            place = places & BITS
            all_set = all_set and (block[np.int64(place >> S6)] >> (place & BITS_OF_WORD)) & ONE == ONE
            places >>= S9
        found[i] = all_set
