"""Kernels of the hash maps: open addressing with linear probing over 64-bit slots.

A slot packs `tag << 32 | row + 1`; 0 is an empty slot. The tag is the upper half of the mixed id, and the upper bits
of the tag are the id's home slot, so that a map doubles without looking at the ids: it is one sequential pass. A
false match of tags costs one comparison with `row_ids`, never an answer.

Row numbers are handed out in ascending order, those of erased ids first (the last erased first). Maps are read by
any number of threads while none writes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamtrain.sparse.jit import kernel, prefetch

__all__ = ["FREE", "HIGH", "LIVE", "erase", "find", "find_or_insert", "live_rows", "rehash", "unite"]

LIVE, HIGH, FREE = 0, 1, 2
"""Places in a map's `state`: ids held, rows ever handed out, 1 + the newest free row (0: none)."""

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd: Knuth, TAOCP 3, section 6.4.
HALF = np.uint64(32)
LOW = np.uint64(0xFFFFFFFF)
ONE = np.uint64(1)
EMPTY = np.uint64(0)
FAR, NEAR = 32, 16


@kernel
def tag_of(id: np.uint64) -> np.uint64:
    """32 bits that depend on all of `id`. Ids that share their lower or upper bits still differ in the tag's upper bits."""
    return ((id ^ (id >> HALF)) * GOLDEN) >> HALF


@kernel
def shift_of(size: int) -> np.uint64:
    """By how much a tag is shifted to a home slot among `size`, a power of two up to 2^32."""
    shift = HALF
    while size > 1:
        size >>= 1
        shift -= ONE
    return shift


@kernel
def prefetch_probe(
    ids: NDArray[np.uint64], i: int, slots: NDArray[np.uint64], shift: np.uint64, row_ids: NDArray[np.uint64]
) -> None:
    """Asks for what the ids behind `ids[i]` will need: the slot of one far behind, then the row id of one near."""
    far, near = min(i + FAR, ids.size - 1), min(i + NEAR, ids.size - 1)
    prefetch(slots, np.int64(tag_of(ids[far]) >> shift), 0)
    entry = slots[np.int64(tag_of(ids[near]) >> shift)]
    prefetch(row_ids, np.int64(entry & LOW) - 1, 0)


@kernel
def find(
    ids: NDArray[np.uint64], slots: NDArray[np.uint64], row_ids: NDArray[np.uint64], rows: NDArray[np.int32]
) -> None:
    """Looks ids up.

    Args:
      ids: `[N]` uint64, read-only, any values, may repeat.
      slots: `[S]` uint64, S a power of two, at least one empty.
      row_ids: `[C]` uint64, by row the id in it.
      rows: `[N]` int32; overwritten with each id's row, or -1 where it is not there.
    """
    mask = slots.size - 1
    shift = shift_of(slots.size)
    for i in range(ids.size):
        prefetch_probe(ids, i, slots, shift, row_ids)
        id = ids[i]
        tag = tag_of(id)
        at = np.int64(tag >> shift)
        row = np.int64(-1)
        while slots[at] != EMPTY:
            entry = slots[at]
            if entry >> HALF == tag and row_ids[np.int64(entry & LOW) - 1] == id:
                row = np.int64(entry & LOW) - 1
                break
            at = (at + 1) & mask
        rows[i] = row


@kernel
def find_or_insert(
    ids: NDArray[np.uint64],
    start: int,
    slots: NDArray[np.uint64],
    row_ids: NDArray[np.uint64],
    state: NDArray[np.int64],
    rows: NDArray[np.int32],
    fresh: NDArray[np.bool_],
) -> int:
    """Looks up `ids[start:]`, giving those that are not there a row, until the map is full.

    Args:
      ids: `[N]` uint64, read-only, any values, may repeat.
      start: where to go on.
      slots: `[S]` uint64, S a power of two; mutated, filled to at most 7 of 10.
      row_ids: `[C]` uint64; mutated.
      state: `[3]` int64; mutated.
      rows: `[N]` int32; overwritten from `start` with each id's row.
      fresh: `[N]` bool; overwritten from `start`: whether the id was inserted here.

    Returns:
      Where it stopped: N, or the first id without room (in `slots`, or in `row_ids` where `state[LIVE] == C`).
    """
    mask = slots.size - 1
    shift = shift_of(slots.size)
    limit = min(slots.size * 7 // 10, row_ids.size)
    for i in range(start, ids.size):
        prefetch_probe(ids, i, slots, shift, row_ids)
        id = ids[i]
        tag = tag_of(id)
        at = np.int64(tag >> shift)
        row = np.int64(-1)
        while slots[at] != EMPTY:
            entry = slots[at]
            if entry >> HALF == tag and row_ids[np.int64(entry & LOW) - 1] == id:
                row = np.int64(entry & LOW) - 1
                break
            at = (at + 1) & mask
        fresh[i] = row < 0
        if row < 0:
            if state[LIVE] >= limit:
                return i
            state[LIVE] += 1
            row = state[FREE] - 1
            if row >= 0:
                # Free rows are a list threaded through `row_ids`, so that they take no memory of their own.
                state[FREE] = np.int64(row_ids[row])
            else:
                row = state[HIGH]
                state[HIGH] += 1
            row_ids[row] = id
            slots[at] = tag << HALF | np.uint64(row + 1)
        rows[i] = row
    return ids.size


@kernel
def erase(
    ids: NDArray[np.uint64],
    slots: NDArray[np.uint64],
    row_ids: NDArray[np.uint64],
    state: NDArray[np.int64],
    rows: NDArray[np.int32],
) -> None:
    """Removes ids and frees their rows, leaving no tombstones: later entries of the run move back over the hole.

    Args:
      ids: `[N]` uint64, read-only.
      slots, row_ids, state: as `find_or_insert`; mutated.
      rows: `[N]` int32; overwritten with the row that each id had, or -1 where it is not there (any more).

    Source: Knuth, TAOCP 3, section 6.4, algorithm R.
    """
    mask = slots.size - 1
    shift = shift_of(slots.size)
    for i in range(ids.size):
        id = ids[i]
        tag = tag_of(id)
        hole = np.int64(tag >> shift)
        row = np.int64(-1)
        while slots[hole] != EMPTY:
            entry = slots[hole]
            if entry >> HALF == tag and row_ids[np.int64(entry & LOW) - 1] == id:
                row = np.int64(entry & LOW) - 1
                break
            hole = (hole + 1) & mask
        rows[i] = row
        if row < 0:
            continue
        row_ids[row] = np.uint64(state[FREE])
        state[FREE] = row + 1
        state[LIVE] -= 1
        at = (hole + 1) & mask
        while slots[at] != EMPTY:
            home = np.int64((slots[at] >> HALF) >> shift)
            # An entry may move to the hole unless its home lies between the hole and where it is.
            if (at - home) & mask >= (at - hole) & mask:
                slots[hole] = slots[at]
                hole = at
            at = (at + 1) & mask
        slots[hole] = EMPTY


@kernel
def rehash(slots: NDArray[np.uint64], larger: NDArray[np.uint64]) -> None:
    """Enters every entry of `slots` into `larger`, which is all zeros and larger. The two do not overlap."""
    mask = larger.size - 1
    shift = shift_of(larger.size)
    for i in range(slots.size):
        entry = slots[i]
        if entry == EMPTY:
            continue
        at = np.int64((entry >> HALF) >> shift)
        while larger[at] != EMPTY:
            at = (at + 1) & mask
        larger[at] = entry


@kernel
def live_rows(slots: NDArray[np.uint64], rows: NDArray[np.int32]) -> None:
    """Overwrites `rows` (`[state[LIVE]]` int32) with the row of every id, in the order of the slots."""
    count = 0
    for i in range(slots.size):
        if slots[i] != EMPTY:
            rows[count] = np.int64(slots[i] & LOW) - 1
            count += 1


@kernel
def unite(
    values: NDArray[np.uint64],
    serial: np.uint64,
    seen: NDArray[np.uint64],
    ids: NDArray[np.uint64],
    inverse: NDArray[np.int32],
    occurrences: NDArray[np.uint32],
) -> int:
    """Finds the distinct ids of a minibatch, in the order of their first occurrence.

    Args:
      values: `[N]` uint64.
      serial: this minibatch's number, in 1..2^32 - 1. Entries of `seen` with another number count as empty, so that
        nothing is cleared between minibatches.
      seen: `[S]` uint64, S a power of two above N; mutated.
      ids: `[N]` uint64; its first U are overwritten with the distinct ids.
      inverse: `[N]` int32; overwritten: `values[n] == ids[inverse[n]]`.
      occurrences: `[N]` uint32; its first U are overwritten with how often each id occurs.

    Returns:
      U.
    """
    mask = seen.size - 1
    shift = shift_of(seen.size)
    count = 0
    for n in range(values.size):
        prefetch(seen, np.int64(tag_of(values[min(n + FAR, values.size - 1)]) >> shift), 0)
        id = values[n]
        at = np.int64(tag_of(id) >> shift)
        position = np.int64(-1)
        while seen[at] >> HALF == serial:
            candidate = np.int64(seen[at] & LOW)
            if ids[candidate] == id:
                position = candidate
                break
            at = (at + 1) & mask
        if position < 0:
            position = np.int64(count)
            count += 1
            seen[at] = serial << HALF | np.uint64(position)
            ids[position] = id
            occurrences[position] = 0
        occurrences[position] += np.uint32(1)
        inverse[n] = position
    return count
