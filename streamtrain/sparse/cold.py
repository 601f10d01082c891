"""What expiry knows of the rows that are in a store and not in memory.

Expiry looks at all rows whose turn it is, wherever they are. Those in the store are fetched before their step, and between
the one and the other things happen, which are set right here. `docs/store.md` has the argument.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from streamtrain.log.record import TableRows
from streamtrain.sparse.index import Index
from streamtrain.sparse.memory import as_input, reserve
from streamtrain.sparse.turns import in_order, until_turn

__all__ = ["AHEAD_STEPS", "ColdRows", "ExpiredIds", "joined", "taken"]

AHEAD_STEPS = 64
"""Fewer steps than these, and than those of a sweep, before its own may a share of the store's rows be fetched."""

IDS_LIMIT = 2**31 - 1


class ColdRows:
    """The rows of one table that are in a store. Used by the thread that has the table.

    Args:
      name: the table's.
      rows_max: its bound on rows.
      every: steps in which each row has its turn once.
    """

    def __init__(self, name: str, rows_max: int, every: int) -> None:
        self._name, self._every = name, every
        self._expired = ExpiredIds(f"table {name!r}, rows that expired and are still in the store,", rows_max)
        # By step, rows that left memory when the share of that step may have been fetched already.
        self._left: dict[int, list[TableRows]] = {}
        self._offered: tuple[int, TableRows, int] | None = None

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory in use, but for copies of single rows."""
        return self._expired.memory_bytes

    def soon(self, ids: NDArray[np.uint64], step: int) -> NDArray[np.uint64]:
        """Those of ids (`[N]` uint64) whose turn comes so soon after `step`, the next one, that it may have been fetched for."""
        return ids[until_turn(ids, step, self._every) < AHEAD_STEPS]

    def leave(self, rows: TableRows, step: int) -> None:
        """Rows that are `soon` leave memory: what was fetched of them may be older than they are, so copies stay."""
        until = until_turn(rows.ids, step, self._every)
        for steps in np.unique(until).tolist():
            self._left.setdefault(step + steps, []).append(taken(rows, until == steps))

    def without_expired(self, values: TableRows, whole: int) -> TableRows:
        """Of rows pulled from a store that had all steps before `whole`, those that have not expired since."""
        return self._still(values, whole)

    def offer(self, rows: TableRows, step: int, whole: int, oldest: int) -> None:
        """Takes the rows that it is the turn of at `step`, the next one, from a store that had all steps before `whole`.

        Rows that do not expire if they are as they were then may be missing. No row comes any more from a store that had not
        all steps before `oldest`.
        """
        self._offered = step, rows, whole
        self._expired.forget(oldest)

    def join(self, rows: TableRows, step: int) -> TableRows:
        """Adds to the rows in memory (`rows`, in order) those that are not, so that all whose turn is at `step` are there."""
        assert self._offered is not None and self._offered[0] == step, (
            f"no rows of table {self._name!r} were offered for step {step}"
        )
        (_, offered, whole), self._offered = self._offered, None
        # Later ones are newer.
        cold = _last(joined([self._still(offered, whole), *self._left.pop(step, [])]))
        cold = taken(cold, ~np.isin(cold.ids, rows.ids))
        everything = joined([rows, cold])
        return taken(everything, in_order(everything.ids))

    def bury(self, ids: NDArray[np.uint64], step: int) -> None:
        """Ids expired at `step`: the store goes on having their rows until it has applied that step."""
        self._expired.add(ids, step)

    def _still(self, rows: TableRows, whole: int) -> TableRows:
        since = self._expired.since(rows.ids, whole)
        return taken(rows, ~since) if since.any() else rows


class ExpiredIds:
    """Ids that expired lately, and at which step. For one thread; takes 32 to 48 bytes an id."""

    def __init__(self, label: str, rows_max: int) -> None:
        """Args: label: for error texts; rows_max: the table's. Raises: ConfigError where there is no address space for it."""
        ids_max = min(2 * rows_max, IDS_LIMIT)
        self._index = Index(label, ids_max)
        self._steps: NDArray[np.int64] = reserve((ids_max,), np.int64, label)
        self._order: deque[tuple[int, NDArray[np.uint64]]] = deque()

    def __len__(self) -> int:
        return len(self._index)

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory in use."""
        return self._index.memory_bytes + 16 * self._index.rows_high

    def add(self, ids: NDArray[np.uint64], step: int) -> None:
        """Adds distinct ids, at a step that is later than those before. Raises TableFull: there is no room."""
        if not len(ids):
            return
        rows, fresh = np.empty(len(ids), np.int32), np.empty(len(ids), np.bool_)
        self._index.find_or_insert(as_input(ids, np.uint64), rows, fresh)
        self._steps[rows] = step
        self._order.append((step, ids))

    def since(self, ids: NDArray[np.uint64], step: int) -> NDArray[np.bool_]:
        """Which ids (`[N]` bool) have expired at `step` or later."""
        if not len(self):
            return np.zeros(len(ids), np.bool_)
        rows = self._index.find(ids)
        return (rows >= 0) & (self._steps[rows] >= step)

    def forget(self, step: int) -> None:
        """Drops ids that have not expired at `step` or later."""
        while self._order and self._order[0][0] < step:
            _, ids = self._order.popleft()
            self._index.erase(ids[~self.since(ids, step)])


def joined(parts: list[TableRows]) -> TableRows:
    """One part (there is at least one) behind the other. Tombstones are passed over."""
    if len(parts) == 1:
        return parts[0]
    return TableRows(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.weights for part in parts]),
        np.concatenate([part.slots for part in parts]),
        np.concatenate([part.counts for part in parts]),
        np.concatenate([part.last_steps for part in parts]),
    )


def taken(rows: TableRows, which: NDArray[np.bool_] | NDArray[np.int64]) -> TableRows:
    """Those of the rows that a mask or places name. Tombstones are passed over."""
    return TableRows(
        rows.ids[which], rows.weights[which], rows.slots[which], rows.counts[which], rows.last_steps[which]
    )


def _last(rows: TableRows) -> TableRows:
    """The last row of each id."""
    _, back = np.unique(rows.ids[::-1], return_index=True)
    return rows if len(back) == len(rows.ids) else taken(rows, len(rows.ids) - 1 - back)
