"""Which rows changed since the last epoch cut, in the order in which they first did."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamtrain.sparse.jit import kernel, prefetch
from streamtrain.sparse.memory import give_back, reserve

__all__ = ["DirtyRows", "mark", "renumber", "take", "unmark"]

ROWS_LIMIT = 2**31 - 1
HOLE = np.int32(-1)
AHEAD = 16


class DirtyRows:
    """A set of row numbers that keeps its order. It takes 4 bytes a row and 4 more for each row marked at once."""

    def __init__(self, name: str, rows_max: int) -> None:
        """Args: name: for error texts; rows_max: row numbers are below it. Raises: ConfigError."""
        self._places: NDArray[np.int32] = reserve((rows_max,), np.int32, name)
        # Twice the rows, so that squeezing the holes of removed rows out of a full list frees half of it.
        self._list: NDArray[np.int32] = reserve((min(2 * rows_max, ROWS_LIMIT),), np.int32, name)
        self._state = np.zeros(1, np.int64)

    @property
    def memory_bytes(self) -> int:
        """Bytes of the list in use; the marks' are counted with the rows."""
        return 4 * int(self._state[0])

    def mark(self, rows: NDArray[np.int32]) -> None:
        """Adds rows (`[N]` int32); those that are marked keep their place, and numbers below 0 are passed over."""
        mark(rows, self._places, self._list, self._state)

    def marked(self, rows: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Which rows (`[N]` int32, none below 0) are marked."""
        return self._places[rows] != 0

    def unmark(self, rows: NDArray[np.int32]) -> None:
        """Removes rows (`[N]` int32); numbers below 0 are passed over."""
        unmark(rows, self._places, self._list)

    def renumber(self, sources: NDArray[np.int32], targets: NDArray[np.int32]) -> None:
        """Row `sources[m]` is row `targets[m]` from now on, which was not marked: one after the other. Marks keep their place."""
        renumber(sources, targets, self._places, self._list)

    def give_back(self, first: int, end: int) -> None:
        """Gives the memory of the marks of rows first <= row < end back, none of which is marked."""
        give_back(self._places, first, end)

    def take(self) -> NDArray[np.int32]:
        """Returns the marked rows and clears the marks."""
        rows = np.empty(int(self._state[0]), np.int32)
        return rows[: take(self._places, self._list, self._state, rows)].copy()


@kernel
def mark(
    rows: NDArray[np.int32], places: NDArray[np.int32], marked: NDArray[np.int32], state: NDArray[np.int64]
) -> None:
    """Appends the rows that are not marked yet.

    Args:
      rows: `[N]` int32; those below 0 are passed over.
      places: `[C]` int32, by row 1 + its place in `marked`, or 0; mutated.
      marked: `[L]` int32, L > C or all rows fit; rows in order, -1 where one was removed; mutated.
      state: `[1]` int64, how much of `marked` is in use; mutated.
    """
    for i in range(rows.size):
        prefetch(places, np.int64(rows[min(i + AHEAD, rows.size - 1)]), 0)
        row = rows[i]
        if row >= 0 and places[row] == 0:
            if state[0] == marked.size:
                squeeze(places, marked, state)
            marked[state[0]] = row
            state[0] += 1
            places[row] = state[0]


@kernel
def squeeze(places: NDArray[np.int32], marked: NDArray[np.int32], state: NDArray[np.int64]) -> None:
    """Closes the holes of `marked`; arguments as `mark`."""
    count = 0
    for p in range(state[0]):
        row = marked[p]
        if row != HOLE:
            marked[count] = row
            count += 1
            places[row] = count
    state[0] = count


@kernel
def unmark(rows: NDArray[np.int32], places: NDArray[np.int32], marked: NDArray[np.int32]) -> None:
    """Leaves a hole at the place of each row; arguments as `mark`, rows below 0 are passed over."""
    for i in range(rows.size):
        row = rows[i]
        if row >= 0 and places[row] > 0:
            marked[places[row] - 1] = HOLE
            places[row] = 0


@kernel
def renumber(
    sources: NDArray[np.int32],
    targets: NDArray[np.int32],
    places: NDArray[np.int32],
    marked: NDArray[np.int32],
) -> None:
    """Passes the marks of `sources` (`[M]` int32) on to `targets` (`[M]` int32) in order; other arguments as `mark`."""
    for m in range(sources.size):
        place = places[sources[m]]
        if place > 0:
            marked[place - 1] = targets[m]
            places[targets[m]] = place
            places[sources[m]] = 0


@kernel
def take(
    places: NDArray[np.int32], marked: NDArray[np.int32], state: NDArray[np.int64], rows: NDArray[np.int32]
) -> int:
    """Moves the marked rows to `rows` (`[>= state[0]]` int32); returns how many. Other arguments as `mark`."""
    count = 0
    for p in range(state[0]):
        row = marked[p]
        if row != HOLE:
            rows[count] = row
            count += 1
            places[row] = 0
    state[0] = 0
    return count
