"""Which rows a table will need of the store, before its step."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from streamtrain.sparse.direct import DirectIndex
from streamtrain.sparse.hashed_ids import RowIds
from streamtrain.sparse.index import IdSet
from streamtrain.sparse.tables import AnyTable, Hashing

__all__ = ["DynamicRows", "HashedRows", "RowsWanted", "rows_wanted"]


class RowsWanted(Protocol):
    """Remembers the rows that were asked for, apart from the table that they are for. For one thread."""

    def new(self, ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The rows that ids (`[N]` uint64) need and that no id needed before, each once, as the store knows them.

        Raises:
          TableFull: more rows than the table may hold.
        """


class DynamicRows:
    """Each id has its own row."""

    def __init__(self, name: str, rows_max: int) -> None:
        """Args: name: the table's; rows_max: its bound. Raises: ConfigError."""
        self._asked = IdSet(name, rows_max)

    def new(self, ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
        return ids[self._asked.add_missing(ids)]


class HashedRows:
    """Ids share rows."""

    def __init__(self, name: str, hashing: Hashing, seed: int) -> None:
        """Args: name: the table's; hashing: of the table; seed: the model's. Raises: ConfigError."""
        self._row_ids, self._asked = RowIds(hashing, seed, name), DirectIndex(name, hashing.sizes)

    def new(self, ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
        row_ids = self._row_ids.of(ids)
        rows, fresh = np.empty(len(row_ids), np.int32), np.empty(len(row_ids), np.bool_)
        self._asked.find_or_insert(row_ids, rows, fresh)
        return row_ids[fresh]


def rows_wanted(name: str, settings: AnyTable, seed: int) -> RowsWanted:
    """Of the table that `settings` describe, none yet. Raises ConfigError where there is no address space for it."""
    if settings.hashing is None:
        return DynamicRows(name, settings.rows_max)
    return HashedRows(name, settings.hashing, seed)
