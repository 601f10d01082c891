"""The index of a table of fixed size, which is none: the row number follows from the row id."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from streamtrain.errors import ConfigError
from streamtrain.sparse.crew import pieces, share
from streamtrain.sparse.jit import kernel, prefetch
from streamtrain.sparse.memory import as_input, reserve
from streamtrain.sparse.tables import PART_BITS

__all__ = ["DirectIndex"]

PART_SHIFT = np.uint64(PART_BITS)
LOW = np.uint64((1 << PART_BITS) - 1)
AHEAD = 16


class DirectIndex:
    """Which of the row ids (part << 32 | bucket) are in use: what `Index` does, in one byte a row.

    One thread may write; `find` may run in any number of threads as long as none writes.
    """

    def __init__(self, name: str, sizes: Sequence[int]) -> None:
        """Args:
          name: what is indexed, for error texts.
          sizes: rows of each part; below 2^31 in all.

        Raises:
          ConfigError: the system has no address space for them.
        """
        self._name, self._sizes = name, np.array(sizes, np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)]).astype(np.int64)
        self.rows_max = int(self._starts[-1])
        self._live: NDArray[np.bool_] = reserve((self.rows_max,), np.bool_, name)
        self._counts = np.zeros(len(sizes), np.int64)
        self._high = 0

    def __len__(self) -> int:
        return int(self._counts.sum())

    @property
    def counts(self) -> list[int]:
        """By part, how many of its rows are in use."""
        found: list[int] = self._counts.tolist()
        return found

    @property
    def rows_high(self) -> int:
        """One more than the largest row number ever in use."""
        return self._high

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory in use."""
        return self._high

    def find(self, ids: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Each row id's row (`[N]` int32), or -1 where it is not in use or none of this table's."""
        ids, rows = as_input(ids, np.uint64), np.empty(len(ids), np.int32)

        def look_up(first: int, end: int) -> None:
            number(ids[first:end], self._sizes, self._starts, rows[first:end])
            keep_live(rows[first:end], self._live)

        share(look_up, pieces(len(ids)))
        return rows

    def find_or_insert(
        self, ids: NDArray[np.uint64], rows: NDArray[np.int32], fresh: NDArray[np.bool_]
    ) -> int:
        """Brings row ids into use; arguments and result as `Index.find_or_insert`.

        Raises:
          ConfigError: one of them is none of this table's. Nothing has changed; `fresh` is False.
        """
        fresh.fill(False)
        strange = number(as_input(ids, np.uint64), self._sizes, self._starts, rows)
        if strange >= 0:
            raise ConfigError(
                f"{self._name}: there is no row {int(ids[strange]):#x} among parts of {self._sizes.tolist()} rows; these "
                "rows were made with other settings: set `rows` and `hashes` back, or give the new model a log of its own"
            )
        before = len(self)
        insert(rows, self._starts, self._live, self._counts, fresh)
        self._high = max(self._high, 1 + int(rows.max(initial=-1)))
        return len(self) - before

    def make_room(self, count: int) -> None:
        """Nothing: there is room for all of them from the start."""

    def erase(self, ids: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Takes row ids out of use; returns the row that each had (`[N]` int32), or -1 where it was not in use."""
        rows = np.empty(len(ids), np.int32)
        number(as_input(ids, np.uint64), self._sizes, self._starts, rows)
        erase(rows, self._starts, self._live, self._counts)
        return rows

    def live_rows(self) -> NDArray[np.int32]:
        """The rows in use (`[len(self)]` int32), ascending."""
        return np.flatnonzero(self._live[: self._high]).astype(np.int32)

    def ids_of(self, rows: NDArray[np.int32]) -> NDArray[np.uint64]:
        """The row ids (`[N]` uint64) of rows (`[N]` int32)."""
        ids, rows = np.empty(len(rows), np.uint64), as_input(rows, np.int32)
        share(lambda first, end: unnumber(rows[first:end], self._starts, ids[first:end]), pieces(len(rows)))
        return ids


@kernel
def number(
    ids: NDArray[np.uint64], sizes: NDArray[np.int64], starts: NDArray[np.int64], rows: NDArray[np.int32]
) -> int:
    """Finds the row numbers of row ids.

    Args:
      ids: `[N]` uint64, read-only, any values.
      sizes: `[P]` int64, rows of each part.
      starts: `[P + 1]` int64, the first row of each part, and the end.
      rows: `[N]` int32; overwritten, with -1 where a row id is none of the table's.

    Returns:
      The position of the last of these, or -1.
    """
    strange = -1
    for i in range(ids.size):
        part, bucket = ids[i] >> PART_SHIFT, np.int64(ids[i] & LOW)
        if part < np.uint64(sizes.size) and bucket < sizes[np.int64(part)]:
            rows[i] = starts[np.int64(part)] + bucket
        else:
            rows[i] = -1
            strange = i
    return strange


@kernel
def unnumber(rows: NDArray[np.int32], starts: NDArray[np.int64], ids: NDArray[np.uint64]) -> None:
    """Overwrites `ids` (`[N]` uint64) with the row ids of rows (`[N]` int32, read-only) in the table; `starts` as `number`."""
    for i in range(rows.size):
        part = part_of(rows[i], starts)
        ids[i] = np.uint64(part) << PART_SHIFT | np.uint64(rows[i] - starts[part])


@kernel
def keep_live(rows: NDArray[np.int32], live: NDArray[np.bool_]) -> None:
    """Overwrites with -1 the rows (`[N]` int32) that are not `live` (`[C]` bool); those below 0 stay."""
    for i in range(rows.size):
        prefetch(live, np.int64(rows[min(i + AHEAD, rows.size - 1)]), 0)
        if rows[i] >= 0 and not live[rows[i]]:
            rows[i] = -1


@kernel
def insert(
    rows: NDArray[np.int32],
    starts: NDArray[np.int64],
    live: NDArray[np.bool_],
    counts: NDArray[np.int64],
    fresh: NDArray[np.bool_],
) -> None:
    """Brings rows into use.

    Args:
      rows: `[N]` int32, >= 0, may repeat.
      starts: `[P + 1]` int64.
      live: `[C]` bool; mutated.
      counts: `[P]` int64, live rows by part; mutated.
      fresh: `[N]` bool; set where the row was not in use, at its first occurrence.
    """
    for i in range(rows.size):
        row = rows[i]
        if not live[row]:
            live[row] = fresh[i] = True
            counts[part_of(row, starts)] += 1


@kernel
def erase(
    rows: NDArray[np.int32], starts: NDArray[np.int64], live: NDArray[np.bool_], counts: NDArray[np.int64]
) -> None:
    """Takes rows (`[N]` int32) out of use, overwriting with -1 those that are not; other arguments as `insert`."""
    for i in range(rows.size):
        row = rows[i]
        if row >= 0 and live[row]:
            live[row] = False
            counts[part_of(row, starts)] -= 1
        else:
            rows[i] = -1


@kernel
def part_of(row: int, starts: NDArray[np.int64]) -> int:
    """The part that a row belongs to; parts are few."""
    part = 0
    while row >= starts[part + 1]:
        part += 1
    return part
