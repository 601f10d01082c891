"""Looking at every id of an index in turn: a share of them each step, in an order that no memory has a say in.

The 2^32 tags of ids (see `probing`) are cut into equal shares, one a step. The index is ordered by tag but for
collisions, so that a share is one run of its slots, whatever its size: work per step is bounded, and which ids come at
which step depends on the ids alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamtrain.sparse.index import Index
from streamtrain.sparse.jit import kernel
from streamtrain.sparse.probing import GOLDEN

__all__ = [
    "TAGS",
    "in_order",
    "rows_in_turn",
    "share_of",
    "slots_in_share",
    "tags_in_turn",
    "tags_of",
    "until_turn",
]

TAGS = 2**32
HALF, LOW, ONE, EMPTY = np.uint64(32), np.uint64(0xFFFFFFFF), np.uint64(1), np.uint64(0)
ROWS_FIRST = 1024


def share_of(size: int, step: int, every: int) -> tuple[int, int]:
    """The part (first, end) of `size` things whose turn it is at `step`, each coming once in `every` steps."""
    turn = step % every
    return turn * size // every, (turn + 1) * size // every


def tags_in_turn(step: int, every: int) -> tuple[int, int]:
    """The tags (first, end) whose turn it is at `step`."""
    return share_of(TAGS, step, every)


def until_turn(ids: NDArray[np.uint64], step: int, every: int) -> NDArray[np.int64]:
    """How many steps (`[N]` int64, below `every`) there are from `step` to the one at which it is an id's turn."""
    # The last turn whose first tag is not behind the id's.
    turns = ((tags_of(ids) + ONE) * np.uint64(every) - ONE) >> HALF
    return (turns.astype(np.int64) - step) % every


def rows_in_turn(index: Index, step: int, every: int) -> NDArray[np.int32]:
    """The rows (`[N]` int32) of the ids whose turn it is, by tag and then id."""
    first, end = tags_in_turn(step, every)
    rows = np.empty(ROWS_FIRST, np.int32)
    bits, split = index.layout
    where = np.uint64(bits), np.uint64(split), np.uint64(first), np.uint64(end)
    while (count := slots_in_share(index.entries, *where, rows)) > len(rows):
        rows = np.empty(count, np.int32)
    rows = rows[:count]
    ids = index.row_ids[rows]
    return rows[in_order(ids)]


def in_order(ids: NDArray[np.uint64]) -> NDArray[np.int64]:
    """What puts ids (`[N]` uint64) in the order of sweeps: by tag and then id."""
    return np.lexsort((ids, tags_of(ids)))


def tags_of(ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """What `probing.tag_of` gives each id (`[N]` uint64)."""
    return ((ids ^ (ids >> HALF)) * GOLDEN) >> HALF


@kernel
def slots_in_share(
    slots: NDArray[np.uint64],
    bits: np.uint64,
    split: np.uint64,
    first: np.uint64,
    end: np.uint64,
    rows: NDArray[np.int32],
) -> int:
    """Finds the rows whose ids have a tag in [first, end).

    Args:
      slots, bits, split: of an index; see `probing`.
      rows: `[N]` int32; overwritten with the first N of them.

    Returns:
      How many there are.
    """
    count = 0
    if first == end:
        return count
    coarse = HALF - bits
    at, last = first >> coarse, (end - ONE) >> coarse
    if at >= split:
        at = first >> (coarse - ONE)
    if last >= split:
        last = (end - ONE) >> (coarse - ONE)
    # Homes ascend with tags, and an entry lies at its home or behind it, up to the next empty slot.
    while True:
        entry = slots[np.int64(at)]
        if entry == EMPTY:
            if at >= last:
                return count
        elif first <= entry >> HALF < end:
            if count < rows.size:
                rows[count] = np.int64(entry & LOW) - 1
            count += 1
        at += ONE
