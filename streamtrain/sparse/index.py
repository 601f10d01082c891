"""The index of an embedding table: which row an id has."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamtrain.errors import TableFull
from streamtrain.sparse import probing
from streamtrain.sparse.memory import as_input, reserve

__all__ = ["IdSet", "Index"]

SLOTS_MIN = 1024


class Index:
    """A map from ids (any uint64) to row numbers below `rows_max`. Rows of erased ids are handed out again.

    It takes 8 bytes a row for the ids and 11 to 23 for the slots. One thread may write; `find` may run in any number
    of threads as long as none writes.
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
        self._slots = np.zeros(SLOTS_MIN, np.uint64)
        self._state = np.zeros(3, np.int64)

    def __len__(self) -> int:
        return int(self._state[probing.LIVE])

    @property
    def entries(self) -> NDArray[np.uint64]:
        """`[S]` uint64, the slots of `probing`, for kernels that only read; valid until an id is inserted."""
        return self._slots

    @property
    def rows_high(self) -> int:
        """One more than the largest row number ever handed out."""
        return int(self._state[probing.HIGH])

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory in use."""
        return self._slots.nbytes + 8 * self.rows_high

    def find(self, ids: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Each id's row (`[N]` int32), or -1 where it is not there."""
        rows = np.empty(len(ids), np.int32)
        probing.find(as_input(ids, np.uint64), self._slots, self.row_ids, rows)
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
        before, done = len(self), 0
        while True:
            done = probing.find_or_insert(ids, done, self._slots, self.row_ids, self._state, rows, fresh)
            if done == len(ids):
                return len(self) - before
            if len(self) == self.rows_max:
                fresh[done:] = False
                raise TableFull(
                    f"{self.name} holds rows_max = {self.rows_max} rows and a new id came; raise rows_max "
                    "(memory is taken only for rows that exist), or let fewer ids in by admission or expiry"
                )
            self._grow(2 * len(self._slots))

    def make_room(self, count: int) -> None:
        """Grows at once to what `count` ids take, where they are more than it has room for: no id is moved twice."""
        size = len(self._slots)
        while size * 7 // 10 < min(count, self.rows_max):
            size *= 2
        if size > len(self._slots):
            self._grow(size)

    def _grow(self, size: int) -> None:
        larger = np.zeros(size, np.uint64)
        probing.rehash(self._slots, larger)
        self._slots = larger

    def erase(self, ids: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Removes ids; returns the row that each had (`[N]` int32), or -1 where it was not there."""
        rows = np.empty(len(ids), np.int32)
        probing.erase(as_input(ids, np.uint64), self._slots, self.row_ids, self._state, rows)
        return rows

    def ids_of(self, rows: NDArray[np.int32]) -> NDArray[np.uint64]:
        """The ids (`[N]` uint64) of rows in use (`[N]` int32)."""
        return self.row_ids[rows]

    def live_rows(self) -> NDArray[np.int32]:
        """The rows in use (`[len(self)]` int32), ascending."""
        rows = np.empty(len(self), np.int32)
        probing.live_rows(self._slots, rows)
        rows.sort()
        return rows


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
