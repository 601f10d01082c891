"""Kernels of the hash maps: open addressing with linear probing over 64-bit slots, which grow and shrink in place.

A slot packs `tag << 32 | row + 1`; 0 is an empty slot. The tag is the upper half of the mixed id, and the upper bits
of the tag are the id's home slot, so that slots are in the order of tags but for collisions: neighbours in memory are
neighbours in tag. An entry lies at its home or behind it, with no empty slot in between. A false match of tags costs one
comparison with `row_ids`, never an answer.

Between two sizes, S = 2^`state[BITS]` and 2 S, one number tells which home an id has: coarse homes (of S) below `state[SPLIT]`
are in use, those from there on are split into two fine ones (of 2 S) each. Coarse homes take the front of the memory, fine
ones what follows from 2 `state[SPLIT]` on: homes ascend with tags at any time. Growing moves the split down, entries of one
coarse home at a time, shrinking moves it up; either ends at a whole size. Nothing wraps around: what the last homes cannot
hold lies behind them. So no operation ever moves more than a few entries for each id that it inserts or removes, and an
id is found at any moment by one probe of one memory (linear hashing: Litwin, VLDB 1980; here over one contiguous array).

Row numbers are handed out in ascending order, those of erased ids first (the last erased first). Maps are read by
any number of threads while none writes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamtrain.sparse.jit import kernel, prefetch

__all__ = [
    "BITS",
    "BITS_MIN",
    "FREE",
    "GOLDEN",
    "GROW_ABOVE",
    "HIGH",
    "LIVE",
    "SPLIT",
    "compact",
    "erase",
    "find",
    "find_or_insert",
    "ids_at",
    "live_rows",
    "run_end",
    "unite",
]

LIVE, HIGH, FREE, BITS, SPLIT = 0, 1, 2, 3, 4
"""Places in a map's `state`: ids held, rows ever handed out, 1 + the newest free row (0: none), and how far it has grown."""

BITS_MIN = 10
GROW_ABOVE, SHRINK_BELOW = 65, 40
"""Percent of S ids: above, coarse homes are split; below, fine ones are joined. In between, split ones stay so."""
STRIDE = 16
"""Coarse homes split for each id inserted (joined for each removed): done before there are 72 percent of S ids."""

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
def home_of(tag: np.uint64, coarse: np.uint64, split: np.uint64) -> np.int64:
    """The home slot of a tag. coarse: 32 - `state[BITS]`; split: `state[SPLIT]`."""
    home = tag >> coarse
    if home >= split:
        home = tag >> (coarse - ONE)
    return np.int64(home)


@kernel
def row_in(entry: np.uint64) -> np.int64:
    """The row that a slot names, -1 of an empty one."""
    return np.int64(entry & LOW) - 1


@kernel
def locate(
    id: np.uint64,
    tag: np.uint64,
    slots: NDArray[np.uint64],
    coarse: np.uint64,
    split: np.uint64,
    row_ids: NDArray[np.uint64],
) -> np.int64:
    """The slot in which an id is, or where it is not there, the empty one that it would take. tag: `tag_of` it."""
    at = home_of(tag, coarse, split)
    while slots[at] != EMPTY and (slots[at] >> HALF != tag or row_ids[row_in(slots[at])] != id):
        at += 1
    return at


@kernel
def prefetch_probe(
    ids: NDArray[np.uint64],
    i: int,
    slots: NDArray[np.uint64],
    coarse: np.uint64,
    split: np.uint64,
    row_ids: NDArray[np.uint64],
) -> None:
    """Asks for what the ids behind `ids[i]` will need: the slot of one far behind, then the row id of one near."""
    far, near = min(i + FAR, ids.size - 1), min(i + NEAR, ids.size - 1)
    prefetch(slots, home_of(tag_of(ids[far]), coarse, split), 0)
    prefetch(row_ids, row_in(slots[home_of(tag_of(ids[near]), coarse, split)]), 0)


@kernel
def find(
    ids: NDArray[np.uint64],
    slots: NDArray[np.uint64],
    state: NDArray[np.int64],
    row_ids: NDArray[np.uint64],
    rows: NDArray[np.int32],
) -> None:
    """Looks ids up.

    Args:
      ids: `[N]` uint64, read-only, any values, may repeat.
      slots: `[M]` uint64, more than all homes and ids together.
      state: `[5]` int64.
      row_ids: `[C]` uint64, by row the id in it.
      rows: `[N]` int32; overwritten with each id's row, or -1 where it is not there.
    """
    coarse, split = HALF - np.uint64(state[BITS]), np.uint64(state[SPLIT])
    for i in range(ids.size):
        prefetch_probe(ids, i, slots, coarse, split, row_ids)
        id = ids[i]
        rows[i] = row_in(slots[locate(id, tag_of(id), slots, coarse, split, row_ids)])


@kernel
def find_or_insert(
    ids: NDArray[np.uint64],
    slots: NDArray[np.uint64],
    row_ids: NDArray[np.uint64],
    state: NDArray[np.int64],
    rows: NDArray[np.int32],
    fresh: NDArray[np.bool_],
) -> int:
    """Looks ids up, giving those that are not there a row, until there is none left. Grows as it goes.

    Args:
      ids: `[N]` uint64, read-only, any values, may repeat.
      slots: `[M]` uint64, more than all homes of the largest size and ids together; mutated.
      row_ids: `[C]` uint64; mutated.
      state: `[5]` int64; mutated.
      rows: `[N]` int32; overwritten with each id's row.
      fresh: `[N]` bool; overwritten: whether the id was inserted here.

    Returns:
      Where it stopped: N, or the first id that got no row because `state[LIVE] == C`.
    """
    coarse, split = HALF - np.uint64(state[BITS]), np.uint64(state[SPLIT])
    for i in range(ids.size):
        prefetch_probe(ids, i, slots, coarse, split, row_ids)
        id = ids[i]
        tag = tag_of(id)
        at = locate(id, tag, slots, coarse, split, row_ids)
        row = row_in(slots[at])
        fresh[i] = row < 0
        if row < 0:
            if state[LIVE] == row_ids.size:
                return i
            state[LIVE] += 1
            row = state[FREE] - 1
            if row >= 0:
                unlink(row, row_ids, state)
            else:
                row = state[HIGH]
                state[HIGH] += 1
            row_ids[row] = id
            slots[at] = tag << HALF | np.uint64(row + 1)
            if state[LIVE] * 100 > GROW_ABOVE << state[BITS]:
                grow(slots, state)
                coarse, split = HALF - np.uint64(state[BITS]), np.uint64(state[SPLIT])
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
    """Removes ids and frees their rows, leaving no tombstones: later entries of the run move back over the hole. Shrinks.

    Args:
      ids: `[N]` uint64, read-only.
      slots, row_ids, state: as `find_or_insert`; mutated.
      rows: `[N]` int32; overwritten with the row that each id had, or -1 where it is not there (any more).

    Source: Knuth, TAOCP 3, section 6.4, algorithm R.
    """
    coarse, split = HALF - np.uint64(state[BITS]), np.uint64(state[SPLIT])
    for i in range(ids.size):
        id = ids[i]
        tag = tag_of(id)
        hole = locate(id, tag, slots, coarse, split, row_ids)
        row = row_in(slots[hole])
        rows[i] = row
        if row < 0:
            continue
        link(row, row_ids, state)
        state[LIVE] -= 1
        at = hole + 1
        while slots[at] != EMPTY:
            # An entry may move to the hole unless its home lies behind it.
            if home_of(slots[at] >> HALF, coarse, split) <= hole:
                slots[hole] = slots[at]
                hole = at
            at += 1
        slots[hole] = EMPTY
        shrink(slots, state)
        coarse, split = HALF - np.uint64(state[BITS]), np.uint64(state[SPLIT])


@kernel
def link(row: np.int64, row_ids: NDArray[np.uint64], state: NDArray[np.int64]) -> None:
    """Makes a row the newest free one.

    Free rows are a list threaded through `row_ids` both ways, so that they take no memory of their own and any of them can be
    taken: 1 + the next newer one in the upper half, 1 + the next older one in the lower, 0 where there is none.
    """
    older = state[FREE]
    if older > 0:
        row_ids[older - 1] |= np.uint64(row + 1) << HALF
    row_ids[row] = np.uint64(older)
    state[FREE] = row + 1


@kernel
def unlink(row: np.int64, row_ids: NDArray[np.uint64], state: NDArray[np.int64]) -> None:
    """Takes a row out of the list of free ones."""
    newer, older = np.int64(row_ids[row] >> HALF), np.int64(row_ids[row] & LOW)
    if older > 0:
        row_ids[older - 1] = np.uint64(newer) << HALF | row_ids[older - 1] & LOW
    if newer > 0:
        row_ids[newer - 1] = row_ids[newer - 1] >> HALF << HALF | np.uint64(older)
    else:
        state[FREE] = older


@kernel
def compact(
    slots: NDArray[np.uint64],
    row_ids: NDArray[np.uint64],
    state: NDArray[np.int64],
    high: int,
    sources: NDArray[np.int32],
    targets: NDArray[np.int32],
) -> int:
    """Lowers the largest row number: rows at the end that are free go, ids of others get a free row further in front.

    Args:
      slots, row_ids, state: as `find_or_insert`; mutated.
      high: `state[HIGH]` ends there, at least `state[LIVE]`.
      sources, targets: `[M]` int32, M at least by how much `state[HIGH]` goes down; the first are overwritten with the rows
        that ids had and have now, to be moved one after the other.

    Returns:
      How many have moved.
    """
    coarse, split = HALF - np.uint64(state[BITS]), np.uint64(state[SPLIT])
    count = 0
    while state[HIGH] > high:
        row = state[HIGH] - 1
        id = row_ids[row]
        entry = tag_of(id) << HALF | np.uint64(row + 1)
        at = home_of(tag_of(id), coarse, split)
        # A row that is free has no slot, whatever its links may look like as an id.
        while slots[at] != EMPTY and slots[at] != entry:
            at += 1
        if slots[at] == EMPTY:
            unlink(row, row_ids, state)
        else:
            target = state[FREE] - 1
            unlink(target, row_ids, state)
            row_ids[target] = id
            slots[at] = tag_of(id) << HALF | np.uint64(target + 1)
            sources[count], targets[count] = row, target
            count += 1
        state[HIGH] -= 1
    return count


@kernel
def grow(slots: NDArray[np.uint64], state: NDArray[np.int64]) -> None:
    """Splits up to STRIDE coarse homes, from the last one down."""
    for _ in range(STRIDE):
        home = int(state[SPLIT]) - 1
        # Those of the home move behind all that stand where it is now, but for the first few homes.
        if run_end(slots, home) < 2 * home:
            rehome(slots, state, home, home, home, home)
        else:
            rehome_near(slots, state, home, home, home, home)
        if home == 0:
            state[BITS] += 1
            state[SPLIT] = 1 << state[BITS]
            return


@kernel
def shrink(slots: NDArray[np.uint64], state: NDArray[np.int64]) -> None:
    """Joins up to STRIDE pairs of fine homes, from the first one up, where ids are few."""
    if state[SPLIT] == 1 << state[BITS]:
        if state[BITS] == BITS_MIN or state[LIVE] * 200 >= SHRINK_BELOW << state[BITS]:
            return
        state[BITS] -= 1
        state[SPLIT] = 0
    if state[LIVE] * 100 >= SHRINK_BELOW << state[BITS]:
        return
    for _ in range(STRIDE):
        home = int(state[SPLIT])
        if home == 1 << state[BITS]:
            return
        fine = 2 * home
        # As many as stand there now is more than move.
        if run_end(slots, home) + run_end(slots, fine + 1) - fine <= fine:
            rehome(slots, state, home, fine, fine + 1, home + 1)
        else:
            rehome_near(slots, state, home, fine, fine + 1, home + 1)


@kernel
def rehome(
    slots: NDArray[np.uint64],
    state: NDArray[np.int64],
    home: int,
    first: int,
    last: int,
    split: int,
) -> None:
    """Moves the split, and with it the entries of the coarse home that it passes, to where nothing has to move.

    Args:
      slots, state: as `find_or_insert`; mutated.
      home: the coarse home whose entries move.
      first, last: the homes, one or two, that these have before.
      split: becomes `state[SPLIT]`.
    """
    coarse, before, after = HALF - np.uint64(state[BITS]), np.uint64(state[SPLIT]), np.uint64(split)
    at = first
    while at <= last or slots[at] != EMPTY:
        entry = slots[at]
        if entry != EMPTY:
            slots[at] = EMPTY
            # Others go to where they were, or closer to their homes over what has left: never further.
            leaves = np.int64((entry >> HALF) >> coarse) == home
            place(slots, entry, home_of(entry >> HALF, coarse, after if leaves else before))
        at += 1
    state[SPLIT] = split


@kernel
def rehome_near(
    slots: NDArray[np.uint64],
    state: NDArray[np.int64],
    home: int,
    first: int,
    last: int,
    split: int,
) -> None:
    """As `rehome`, where entries may move to a place that is still being cleared: they are all taken out before."""
    coarse, before, after = HALF - np.uint64(state[BITS]), np.uint64(state[SPLIT]), np.uint64(split)
    taken, count = np.empty(run_end(slots, last) - first, np.uint64), 0
    at = first
    while at <= last or slots[at] != EMPTY:
        entry = slots[at]
        if entry != EMPTY:
            slots[at] = EMPTY
            if np.int64((entry >> HALF) >> coarse) == home:
                taken[count] = entry
                count += 1
            else:
                place(slots, entry, home_of(entry >> HALF, coarse, before))
        at += 1
    state[SPLIT] = split
    for i in range(count):
        place(slots, taken[i], home_of(taken[i] >> HALF, coarse, after))


@kernel
def place(slots: NDArray[np.uint64], entry: np.uint64, home: np.int64) -> None:
    """Writes an entry to the first empty slot from its home on."""
    at = home
    while slots[at] != EMPTY:
        at += 1
    slots[at] = entry


@kernel
def run_end(slots: NDArray[np.uint64], first: int) -> int:
    """The first empty slot from `first` on."""
    at = first
    while slots[at] != EMPTY:
        at += 1
    return at


@kernel
def ids_at(row_ids: NDArray[np.uint64], rows: NDArray[np.int32], ids: NDArray[np.uint64]) -> None:
    """Overwrites `ids` (`[N]` uint64) with the ids of `rows` (`[N]` int32, read-only, none below 0)."""
    for i in range(rows.size):
        prefetch(row_ids, np.int64(rows[min(i + NEAR, rows.size - 1)]), 0)
        ids[i] = row_ids[rows[i]]


@kernel
def live_rows(slots: NDArray[np.uint64], rows: NDArray[np.int32]) -> None:
    """Overwrites `rows` (`[state[LIVE]]` int32) with the row of every id, in the order of the slots."""
    count = at = 0
    while count < rows.size:
        if slots[at] != EMPTY:
            rows[count] = row_in(slots[at])
            count += 1
        at += 1


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
