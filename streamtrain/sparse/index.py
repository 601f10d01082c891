"""The index of an embedding table: which row an id has."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamtrain.errors import TableFull
from streamtrain.sparse import probing
from streamtrain.sparse.crew import pieces, share
from streamtrain.sparse.memory import as_input, give_back, populate, reserve

__all__ = ["SLOTS_MIN", "IdSet", "Index"]

SLOTS_MIN = 1 << probing.BITS_MIN
GIVE_BACK = 1 << 22
"""Slots, 32 MiB: as much memory is given back at once at most, which takes a millisecond."""


class Index:
    """A map from ids (any uint64) to row numbers below `rows_max`. Rows of erased ids are handed out again.

    It takes 8 bytes a row for the ids and 11 to 25 for the slots. It grows and shrinks in place, by a few slots with each
    id that comes or goes; see `probing`. One thread may write; `find` may run in any number of threads as long as none writes.
    """

    def __init__(self, name: str, rows_max: int) -> None:
        """Args:
          name: what is indexed, for error texts.
          rows_max: bound on ids held at once, below 2^31.

        Raises:
          ConfigError: the system has no address space for `rows_max` ids.
        """
        self.name, self.rows_max = name, rows_max
        self.row_ids: NDArray[np.uint64] = reserve((rows_max,), np.uint64, name)
        """`[rows_max]` uint64, by row the id in it; of rows that are not in use, nothing is promised."""
        # Behind the largest size there is room for all ids, if they had the last home; and for an end.
        self._slots: NDArray[np.uint64] = reserve((slots_for(rows_max) + rows_max + 1,), np.uint64, name)
        self._state = np.zeros(5, np.int64)
        self._touched = 0
        self._resize(SLOTS_MIN)

    def __len__(self) -> int:
        return int(self._state[probing.LIVE])

    @property
    def entries(self) -> NDArray[np.uint64]:
        """The slots of `probing`, for kernels that only read."""
        return self._slots

    @property
    def layout(self) -> tuple[int, int]:
        """`state[BITS]` and `state[SPLIT]` of `probing`: where in `entries` an id has its home. Changes with any change."""
        return int(self._state[probing.BITS]), int(self._state[probing.SPLIT])

    @property
    def rows_high(self) -> int:
        """One more than the largest row number in use, or that was since `compact`."""
        return int(self._state[probing.HIGH])

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory in use."""
        return 8 * self._touched + 8 * self.rows_high

    def find(self, ids: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Each id's row (`[N]` int32), or -1 where it is not there."""
        ids, rows = as_input(ids, np.uint64), np.empty(len(ids), np.int32)
        share(
            lambda first, end: probing.find(
                ids[first:end], self._slots, self._state, self.row_ids, rows[first:end]
            ),
            pieces(len(ids)),
        )
        return rows

    def find_or_insert(
        self, ids: NDArray[np.uint64], rows: NDArray[np.int32], fresh: NDArray[np.bool_]
    ) -> int:
        """Gives every id a row.

        Args:
          ids: `[N]` uint64, may repeat.
          rows: `[N]` int32; overwritten with the rows.
          fresh: `[N]` bool; overwritten: True where the id was inserted, at its first occurrence.

        Returns:
          How many ids were inserted.

        Raises:
          TableFull: there is no row left. The ids before that one are in the index, the others are not; `fresh` is
            right for all of them.
        """
        ids = as_input(ids, np.uint64)
        before = len(self)
        done = probing.find_or_insert(ids, self._slots, self.row_ids, self._state, rows, fresh)
        self._touched = max(self._touched, self._extent)
        if done < len(ids):
            fresh[done:] = False
            raise TableFull(
                f"{self.name} holds rows_max = {self.rows_max} rows and a new id came; raise rows_max "
                "(memory is taken only for rows that exist), or let fewer ids in by admission or expiry"
            )
        return len(self) - before

    def make_room(self, count: int) -> None:
        """Where nothing is held yet, takes the size at once to which `count` ids would make it grow."""
        if not len(self):
            self._resize(max(slots_for(min(count, self.rows_max)), 1 << self.layout[0]))

    def expect(self, count: int) -> None:
        """Finds memory for `count` ids, for an empty index; see `memory.populate`. For any thread."""
        populate(self._slots, 0, slots_for(min(count, self.rows_max)))
        populate(self.row_ids, 0, count)

    def _resize(self, slots: int) -> None:
        self._state[probing.BITS], self._state[probing.SPLIT] = slots.bit_length() - 1, slots
        self._touched = max(self._touched, slots)

    @property
    def _extent(self) -> int:
        """Slots from the first to the last home."""
        bits, split = self.layout
        return 1 << (bits if split == 1 << bits else bits + 1)

    def _give_back(self) -> None:
        """Gives memory behind the last home back, a piece at a time, once what was there has been moved."""
        if self._touched > (extent := self._extent):
            end = self._touched
            self._touched = max(extent, end - GIVE_BACK)
            give_back(self._slots, probing.run_end(self._slots, self._touched), end)

    def erase(self, ids: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Removes ids; returns the row that each had (`[N]` int32), or -1 where it was not there."""
        rows = np.empty(len(ids), np.int32)
        probing.erase(as_input(ids, np.uint64), self._slots, self.row_ids, self._state, rows)
        self._give_back()
        return rows

    def compact(self, rows_high: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Gives ids whose rows are the last a free row further in front, until `rows_high` >= len(self) is reached.

        Returns:
          `[M]` int32, the rows that ids had, and those that they have now: to be moved one after the other.
        """
        assert len(self) <= rows_high <= self.rows_high
        end = self.rows_high
        sources, targets = np.empty(end - rows_high, np.int32), np.empty(end - rows_high, np.int32)
        count = probing.compact(self._slots, self.row_ids, self._state, rows_high, sources, targets)
        give_back(self.row_ids, rows_high, end)
        return sources[:count], targets[:count]

    def ids_of(self, rows: NDArray[np.int32]) -> NDArray[np.uint64]:
        """The ids (`[N]` uint64) of rows in use (`[N]` int32)."""
        ids, rows = np.empty(len(rows), np.uint64), as_input(rows, np.int32)
        share(
            lambda first, end: probing.ids_at(self.row_ids, rows[first:end], ids[first:end]),
            pieces(len(rows)),
        )
        return ids

    def live_rows(self) -> NDArray[np.int32]:
        """The rows in use (`[len(self)]` int32), ascending."""
        rows = np.empty(len(self), np.int32)
        probing.live_rows(self._slots, rows)
        rows.sort()
        return rows


def slots_for(ids: int) -> int:
    """The size at which an index with `ids` ids does not grow: a power of two."""
    slots = SLOTS_MIN
    while 100 * ids > probing.GROW_ABOVE * slots:
        slots *= 2
    return slots


class IdSet:
    """A bounded set of ids that keeps the order of insertion. For one thread."""

    def __init__(self, name: str, ids_max: int) -> None:
        """Args: as `Index`. Raises: ConfigError."""
        self._name, self._ids_max = name, ids_max
        self._index = Index(name, ids_max)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory in use."""
        return self._index.memory_bytes

    def add_missing(self, ids: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Adds ids; True (`[N]` bool) where one was not there, at its first occurrence.

        Raises:
          TableFull: the set is full. The ids before that one are in the set, the others are not.
        """
        rows, fresh = np.empty(len(ids), np.int32), np.empty(len(ids), np.bool_)
        self._index.find_or_insert(ids, rows, fresh)
        return fresh

    def contains(self, ids: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which ids (`[N]` bool) are in the set."""
        return self._index.find(ids) >= 0

    def remove(self, ids: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Removes ids; True (`[N]` bool) where one was there. The order of insertion is lost."""
        return self._index.erase(ids) >= 0

    def clear(self) -> None:
        """Forgets every id and gives the memory back."""
        self._index = Index(self._name, self._ids_max)

    def ids(self) -> NDArray[np.uint64]:
        """A copy of the ids (`[len(self)]` uint64), in the order of insertion where none was removed."""
        return self._index.row_ids[self._index.live_rows()]
