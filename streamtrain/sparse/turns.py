"""Looking at every id of an index in turn: a share of them each step, in an order that no memory has a say in.

Each id has a ticket, 32 bits that depend on the id alone: its tag (see `probing`) with the upper 16 bits in reverse. The 2^32
tickets are cut into equal shares, one a step. Tickets that share their upper bits are a cell: 1/65,536 of the tags, one run of
slots in an index, which is ordered by tag but for collisions. So work per step is bounded by the share's cells and ids.

Why not shares of the tags themselves: what a sweep drops would then make the index empty behind it and crowded, up to twice
the mean, before it, and where a part of an index has more ids than homes, each insertion walks to the end of that part. By tickets,
cells that are neighbours in memory are half a sweep apart, so that one has the room that the other lacks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamtrain.sparse.index import Index
from streamtrain.sparse.jit import kernel
from streamtrain.sparse.probing import GOLDEN

__all__ = [
    "TICKETS",
    "in_order",
    "rows_between",
    "rows_in_turn",
    "share_of",
    "slots_in_share",
    "tickets_in_turn",
    "tickets_of",
    "until_turn",
]

TICKETS = 2**32
HALF, LOW, ONE, EMPTY = np.uint64(32), np.uint64(0xFFFFFFFF), np.uint64(1), np.uint64(0)
CELL, IN_CELL = np.uint64(16), np.uint64(0xFFFF)
BYTE, LOW_BYTE = np.uint64(8), np.uint64(0xFF)
REVERSED = np.array([int(f"{byte:08b}"[::-1], 2) for byte in range(256)], np.uint64)
"""By byte, its bits in reverse."""
ROWS_FIRST = 1024


def share_of(size: int, step: int, every: int) -> tuple[int, int]:
    """The part (first, end) of `size` things whose turn it is at `step`, each coming once in `every` steps."""
    turn = step % every
    return turn * size // every, (turn + 1) * size // every


def tickets_in_turn(step: int, every: int) -> tuple[int, int]:
    """The tickets (first, end) whose turn it is at `step`."""
    return share_of(TICKETS, step, every)


def until_turn(ids: NDArray[np.uint64], step: int, every: int) -> NDArray[np.int64]:
    """How many steps (`[N]` int64, below `every`) there are from `step` to the one at which it is an id's turn."""
    # The last turn whose first ticket is not behind the id's.
    turns = ((tickets_of(ids) + ONE) * np.uint64(every) - ONE) >> HALF
    return (turns.astype(np.int64) - step) % every


def rows_in_turn(index: Index, step: int, every: int) -> NDArray[np.int32]:
    """The rows (`[N]` int32) of the ids whose turn it is, by ticket and then id."""
    rows = rows_between(index, *tickets_in_turn(step, every))
    return rows[in_order(index.row_ids[rows])]


def rows_between(index: Index, first: int, end: int) -> NDArray[np.int32]:
    """The rows (`[N]` int32) of the ids with a ticket in [first, end), in no particular order."""
    rows = np.empty(ROWS_FIRST, np.int32)
    bits, split = index.layout
    where = np.uint64(bits), np.uint64(split), np.uint64(first), np.uint64(end)
    while (count := slots_in_share(index.entries, *where, REVERSED, rows)) > len(rows):
        rows = np.empty(count, np.int32)
    return rows[:count]


def in_order(ids: NDArray[np.uint64]) -> NDArray[np.int64]:
    """What puts ids (`[N]` uint64) in the order of sweeps: by ticket and then id."""
    return np.lexsort((ids, tickets_of(ids)))


def tickets_of(ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The ticket of each id (`[N]` uint64, below 2^32)."""
    tags = ((ids ^ (ids >> HALF)) * GOLDEN) >> HALF
    cells = tags >> CELL
    cells = REVERSED[cells & LOW_BYTE] << BYTE | REVERSED[cells >> BYTE]
    return cells << CELL | tags & IN_CELL


@kernel
def slots_in_share(
    slots: NDArray[np.uint64],
    bits: np.uint64,
    split: np.uint64,
    first: np.uint64,
    end: np.uint64,
    reverse: NDArray[np.uint64],
    rows: NDArray[np.int32],
) -> int:
    """Finds the rows whose ids have a ticket in [first, end).

    Args:
      slots, bits, split: of an index; see `probing`.
      reverse: REVERSED.
      rows: `[N]` int32; overwritten with the first N of them.

    Returns:
      How many there are.
    """
    count = 0
    while first < end:
        # The share's part of one cell.
        cell = first >> CELL
        stop = min(end, (cell + ONE) << CELL)
        cell = reverse[cell & LOW_BYTE] << BYTE | reverse[cell >> BYTE]
        tag = cell << CELL | first & IN_CELL
        count = slots_of_tags(slots, bits, split, tag, tag + (stop - first), rows, count)
        first = stop
    return count


@kernel
def slots_of_tags(
    slots: NDArray[np.uint64],
    bits: np.uint64,
    split: np.uint64,
    first: np.uint64,
    end: np.uint64,
    rows: NDArray[np.int32],
    count: int,
) -> int:
    """Appends the rows whose ids have a tag in [first, end), which is not empty, to `count` others; returns how many there are then."""
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
