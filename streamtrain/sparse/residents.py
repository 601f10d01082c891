"""Which ids of a table have their rows in memory, and which of them leave first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamtrain.errors import ConfigError
from streamtrain.sparse.index import SLOTS_MIN, Index
from streamtrain.sparse.jit import kernel
from streamtrain.sparse.memory import as_input, reserve
from streamtrain.sparse.optimizers import slots_of
from streamtrain.sparse.probing import GROW_ABOVE
from streamtrain.sparse.rehearsal import ROWS
from streamtrain.sparse.settings import TableSettings
from streamtrain.sparse.unite import distinct

__all__ = ["COUNT_MAX", "STORED_IDS_SHARE", "Residents", "rows_within"]

COUNT_MAX = 3
"""How often the hand passes by a row that many batches named."""

STORED_IDS_SHARE = 16
"""One part of as many of a bound on memory is for `StoredIds`: 8 bits for each id where memory holds an eighth of all rows."""

ABSENT = np.uint8(0)
FIRST = np.uint8(1)
LAST = np.uint8(1 + COUNT_MAX)
ONE = np.uint8(1)

# Bytes by row and by slot of an index: those of a table, then those of `Residents` beside it.
_TABLE_ROW, _RESIDENTS_ROW, _SLOT = 4 + 4 + 8, 8 + 1 + 8, 8 + 8


def rows_within(name: str, settings: TableSettings, memory_bytes_max: int) -> int:
    """How many rows fit in `memory_bytes_max` with all that finds and remembers them: arena, indexes, marks, counters,
    and the filter of stored ids.

    Raises:
      ConfigError: not one.
    """
    left = memory_bytes_max - memory_bytes_max // STORED_IDS_SHARE
    row = 4 * (settings.dim + slots_of(settings.optimizer, settings.dim) + 2) + _TABLE_ROW + _RESIDENTS_ROW
    most, slots = 0, SLOTS_MIN
    # Indexes double: with more slots there may be room for fewer rows.
    while slots * _SLOT < left:
        most = max(most, min((left - slots * _SLOT) // row, slots * GROW_ABOVE // 100))
        slots *= 2
    if not most:
        raise ConfigError(
            f"tables.{name}.memory_bytes_max = {memory_bytes_max} holds no row of {row} bytes; raise it"
        )
    return min(most, settings.rows_max)


class Residents:
    """A set of ids that says which to let go of: generalised CLOCK (GCLOCK). For one thread.

    Each id has a counter, 0 when it comes, one more for each further batch that names it, up to COUNT_MAX. A hand goes
    round: it takes one off counters above 0 and lets go of ids at 0. So an id that came once leaves on the first
    round, and what is named often or was named lately stays. It takes 25 bytes an id and 11 to 23 for slots.

    Source: Smith, Sequentiality and Prefetching in Database Systems, ACM TODS 3(3), 1978.
    """

    def __init__(self, name: str, ids_max: int) -> None:
        """Args: name: the table's; ids_max: bound. Raises: ConfigError where there is no address space for it."""
        label = f"table {name!r}, ids in memory,"
        self.ids_max = ids_max
        self._index = Index(label, ids_max)
        self._marks = reserve((ids_max,), np.uint8, label)
        self._named = reserve((ids_max,), np.int64, label)
        self._hand = np.zeros(1, np.int64)

    @staticmethod
    def rehearse() -> None:
        """Compiles every kernel, on something else than a set in use."""
        twin, ids = Residents("rehearsal", ROWS), np.arange(ROWS, dtype=np.uint64)
        twin.add(twin.name(ids, 1)[0], 1)
        twin.evict(1, 1)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory in use."""
        return self._index.memory_bytes + 9 * self._index.rows_high

    def name(self, ids: NDArray[np.uint64], batch: int) -> tuple[NDArray[np.uint64], int]:
        """Notes that `batch` names ids (`[N]` uint64, may repeat); returns those that are not here, and how many are."""
        ids = as_input(ids, np.uint64)
        rows = self._index.find(ids)
        here = count(rows, batch, self._marks, self._named)
        return distinct(ids[rows < 0]), here

    def add(self, ids: NDArray[np.uint64], batch: int) -> None:
        """Takes in distinct ids that are not here, which `batch` names first. Raises TableFull: there is no room."""
        rows, fresh = np.empty(len(ids), np.int32), np.empty(len(ids), np.bool_)
        self._index.find_or_insert(ids, rows, fresh)
        self._marks[rows], self._named[rows] = FIRST, batch

    def evict(self, wanted: int, batch: int) -> NDArray[np.uint64]:
        """Lets go of ids that no batch after `batch` has named.

        Returns:
          `[0..wanted]` uint64: fewer where there are not as many.
        """
        rows = np.empty(wanted, np.int32)
        rows = rows[: sweep(self._index.rows_high, batch, self._marks, self._named, self._hand, rows)]
        ids = self._index.ids_of(rows)
        self._index.erase(ids)
        return ids


@kernel
def count(rows: NDArray[np.int32], batch: int, marks: NDArray[np.uint8], named: NDArray[np.int64]) -> int:
    """Adds one to the counters of rows that `batch` had not named yet; returns how many there were.

    Args:
      rows: `[N]` int32, those below 0 are passed over.
      batch: its number.
      marks: `[C]` uint8, by row 1 + its counter, or 0 where it is not in use; mutated.
      named: `[C]` int64, by row the number of the last batch that named it; mutated.
    """
    counted = 0
    for i in range(rows.size):
        row = rows[i]
        if row >= 0 and named[row] != batch:
            counted += 1
            named[row] = batch
            if marks[row] < LAST:
                marks[row] += ONE
    return counted


@kernel
def sweep(
    high: int,
    batch: int,
    marks: NDArray[np.uint8],
    named: NDArray[np.int64],
    hand: NDArray[np.int64],
    rows: NDArray[np.int32],
) -> int:
    """Moves the hand on until it has found enough victims, or every row could have become one.

    Args:
      high: one more than the largest row in use.
      batch: rows that a later batch named stay as they are.
      marks, named: as `count`; marks mutated.
      hand: `[1]` int64, the next row to look at; mutated.
      rows: `[W]` int32; its first are overwritten with the victims, whose marks are 0.

    Returns:
      How many there are.
    """
    found = 0
    for _ in range(high * (COUNT_MAX + 1)):
        if found == rows.size:
            break
        row = hand[0] if hand[0] < high else 0
        hand[0] = row + 1
        if marks[row] == ABSENT or named[row] > batch:
            continue
        if marks[row] > FIRST:
            marks[row] -= ONE
        else:
            marks[row] = ABSENT
            rows[found] = row
            found += 1
    return found
