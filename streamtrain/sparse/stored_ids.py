"""Which ids a store may have a row of, so that it is not asked for the many that are new: a blocked Bloom filter.

A block is a cache line, 512 bits. All bits of an id lie in one block. For the id `x`, modulo 2^64, with `mix` and G as in
docs/initial-rows.md:

    h     = mix(x + G)
    block = floor((h >> 32) * blocks / 2^32)
    bits  = bits 0 to 8, 9 to 17, 18 to 26, 27 to 35 of mix(h + G)

Four bits an id are best where the filter has 6 bits for each id, and close to it from 3 bits to 12: one of 80 new ids is
asked for at 10 bits, one of 10 at 5. A filter that is full answers yes, which costs what it would without one.

Source: Putze, Sanders and Singler, "Cache-, hash- and space-efficient Bloom filters", WEA 2007, section 3 (blocked).
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from streamtrain.sparse.jit import kernel, prefetch
from streamtrain.sparse.memory import as_input, reserve

__all__ = ["StoredIds"]

BLOCK_BYTES = 64
HASHES = 4
AHEAD = 16
# Adding as many takes some milliseconds, for which others wait.
ADDED_AT_ONCE = 1 << 16

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

    def __init__(self, name: str, memory_bytes: int) -> None:
        """Args: name: the table's; memory_bytes: bound. Raises: ConfigError where there is no address space for it."""
        blocks = max(memory_bytes // BLOCK_BYTES, 1)
        self.memory_bytes, self.complete = blocks * BLOCK_BYTES, False
        self._blocks = reserve(
            (blocks, BLOCK_BYTES // 8), np.uint64, f"table {name!r}, ids that the store may have,"
        )
        # Setting a bit reads its word before: two threads that did it at once would lose bits.
        self._adding = threading.Lock()

    def add(self, ids: NDArray[np.uint64]) -> None:
        """Adds ids (`[N]` uint64)."""
        ids = as_input(ids, np.uint64)
        for start in range(0, len(ids), ADDED_AT_ONCE):
            with self._adding:
                add(ids[start : start + ADDED_AT_ONCE], self._blocks)

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
def add(ids: NDArray[np.uint64], filter: NDArray[np.uint64]) -> None:
    """Sets the bits of ids.

    Args:
      ids: `[N]` uint64, read-only.
      filter: `[B, 8]` uint64, B below 2^32; mutated.
    """
    blocks = filter.shape[0]
    for i in range(ids.size):
        prefetch(filter, block_of(mix(ids[min(i + AHEAD, ids.size - 1)] + GAMMA), blocks), 0)
        hash = mix(ids[i] + GAMMA)
        block, places = filter[block_of(hash, blocks)], mix(hash + GAMMA)
        for _ in range(HASHES):
            place = places & BITS
            block[np.int64(place >> S6)] |= ONE << (place & BITS_OF_WORD)
            places >>= S9


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
