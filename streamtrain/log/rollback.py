"""Going back: one more epoch whose absolute values are those of an earlier one. Nothing is erased.

The record holds every row that has changed since as it was (rows that are new since become tombstones), the
admission filters likewise, and the dense parameters, metrics and counters of that epoch. So whoever follows the log (recovery, the store, exports) goes back by
applying it like any other.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from streamtrain.errors import EpochMissing
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.merge import merge
from streamtrain.log.reader import LogReader
from streamtrain.log.record import EpochRecord, FilterRows, TableRows
from streamtrain.log.recovery import recover

__all__ = ["Positions", "earliest", "redone", "rollback", "undoing"]

Positions = Literal["current", "epoch"]
"""Where reading goes on after a rollback: where it stands now, or where it stood then."""

_NO_IDS = np.empty(0, np.uint64)


def rollback(log: EpochLog, epoch: int, positions: Positions = "current", writer: str = "") -> EpochRecord:
    """Makes the model of an earlier epoch the head, by appending.

    Args:
      log: no daemon may hold it.
      epoch: whose model to return to.
      positions: see `Positions`.
      writer: who does it; informative.

    Returns:
      The record that was appended.

    Raises:
      EpochMissing: it is not before the head, or what is needed was collected; the message says what is there.
      Fenced: a daemon holds the log.
      CorruptRecord: of a file on the way. Nothing was appended.
      LogFull, LogError: it cannot be written.
    """
    with log.lock():
        head = log.head()
        if head is None:
            raise EpochMissing(f"{log.path} is empty: there is nothing to roll back")
        record = undoing(log, epoch, head, positions)
        record = replace(record, committed_at_ms=time.time_ns() // 1_000_000, writer=writer)
        log.append(record)
        return record


def earliest(log: LogReader) -> int | None:
    """The oldest epoch that can be returned to; None where there is none.

    All records since are needed, for what they changed, and a base or all epochs before it, for what there was.
    """
    epochs = log.epochs()
    if not epochs:
        return None
    return 0 if epochs[0] == 0 else min((base for base in log.bases() if base >= epochs[0] - 1), default=None)


def undoing(log: LogReader, epoch: int, head: int, positions: Positions) -> EpochRecord:
    """The record that makes the model of `epoch` that of epoch `head` + 1. Writes nothing; raises as `rollback`."""
    first = earliest(log)
    if epoch < 0 or epoch >= head or first is None or epoch < first:
        reach = "nothing" if first is None or first >= head else f"epochs {first} to {head - 1}"
        why = f"the newest is {head}" if epoch >= head else "what that takes was collected into bases"
        raise EpochMissing(
            f"{log.path} cannot be rolled back to epoch {epoch}: {why}; it can be to {reach}. "
            "log.keep_epochs and log.base_every_epochs decide how far back that is"
        )
    since = _Since(log, epoch, head)
    then, pasts = _at(log, epoch, since)
    found = [
        (which, pasts[which].rows(since.alive(which)))
        for which in sorted(pasts, key=lambda which: which.name)
    ]
    last = log.read(head)
    kept = last if positions == "current" else then
    notes = dict(kept.notes or log.describe(epoch + 1).notes)
    notes["rollback"] = f"from epoch {head} to epoch {epoch}, positions of epoch {kept.epoch}"
    return EpochRecord(
        epoch=head + 1,
        previous=log.digest(head),
        step_first=last.step_next,
        step_next=last.step_next,
        samples=0,
        samples_total=then.samples_total,
        positions=dict(kept.positions),
        leaves=dict(kept.leaves),
        tables={which.name: TableRows(**rows) for which, rows in found if which.group == "tables"},
        filters={which.name: FilterRows(**rows) for which, rows in found if which.group == "filters"},
        rules=then.rules,
        dense=then.dense,
        metrics=then.metrics,
        watermark_ms=then.watermark_ms,
        restores=epoch,
        undone_samples=last.samples_total - then.samples_total,
        notes=notes,
    )


def redone(log: LogReader, record: EpochRecord) -> EpochRecord:
    """What a rollback's record has to be, made again from the epochs before it; raises as `undoing`."""
    assert record.restores is not None
    head = record.epoch - 1
    last = log.describe(head)
    stays = (record.positions, record.leaves) == (last.positions, last.leaves)
    positions: Positions = "current" if stays else "epoch"
    return undoing(log, record.restores, head, positions)


@dataclass(frozen=True, slots=True)
class _Columns:
    """One table's rows, or one filter's parts: what is rolled back alike.

    Attributes:
      group, name: where the record has them: `tables` or `filters`, and of which table.
    """

    group: Literal["tables", "filters"]
    name: str

    def of(self, record: EpochRecord) -> TableRows | FilterRows | None:
        """Those of a record."""
        found: TableRows | FilterRows | None = getattr(record, self.group).get(self.name)
        return found

    @property
    def columns(self) -> tuple[str, ...]:
        """Their fields that have an item for each id."""
        return ("weights", "slots", "counts", "last_steps") if self.group == "tables" else ("values",)

    @staticmethod
    def all(record: EpochRecord) -> Iterator[_Columns]:
        """All that a record has."""
        yield from (_Columns("tables", name) for name in record.tables)
        yield from (_Columns("filters", name) for name in record.filters)


class _Since:
    """What the epochs after `epoch` changed, read one at a time, all of them sound.

    Attributes:
      empty: of everything that was changed, no row, as its columns.
    """

    def __init__(self, log: LogReader, epoch: int, head: int) -> None:
        self._log, self._epochs = log, range(epoch + 1, head + 1)
        self.empty: dict[_Columns, dict[str, NDArray[Any]]] = {}
        for each in self._epochs:
            record = log.read(each)
            for which in _Columns.all(record):
                rows = which.of(record)
                self.empty[which] = {name: getattr(rows, name)[:0].copy() for name in which.columns}

    def changed(self, which: _Columns) -> NDArray[np.uint64]:
        """The ids of rows written or removed, ascending."""
        return merge((np.concatenate([rows.ids, rows.tombstones]), _NO_IDS) for rows in self._rows(which))[0]

    def alive(self, which: _Columns) -> NDArray[np.uint64]:
        """Those of them that there are at the end, ascending."""
        return merge((rows.ids, rows.tombstones) for rows in self._rows(which))[0]

    def _rows(self, which: _Columns) -> Iterator[TableRows | FilterRows]:
        for epoch in self._epochs:
            if (rows := which.of(self._log.describe(epoch))) is not None:
                yield rows


class _Past:
    """The rows with some ids as they were: give it records in order. It holds no other row.

    Args:
      ids: `[C]` uint64, ascending.
      empty: by name, a column of no row.
    """

    def __init__(self, ids: NDArray[np.uint64], empty: dict[str, NDArray[Any]]) -> None:
        count = len(ids)
        self._there = np.zeros(count, bool)
        self._ids = ids
        self._columns = {
            name: np.empty((count, *column.shape[1:]), column.dtype) for name, column in empty.items()
        }

    def see(self, rows: TableRows | FilterRows) -> None:
        places, hit = self._find(rows.ids)
        for name, column in self._columns.items():
            column[places] = getattr(rows, name)[hit]
        self._there[places] = True
        self._there[self._find(rows.tombstones)[0]] = False

    def rows(self, alive: NDArray[np.uint64]) -> dict[str, NDArray[Any]]:
        """What the record has of them: those that were there, and tombstones of those of `alive` that were not."""
        gone = self._ids[~self._there]
        columns = {name: column[self._there] for name, column in self._columns.items()}
        return {"ids": self._ids[self._there], **columns, "tombstones": gone[np.isin(gone, alive)]}

    def _find(self, ids: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The places of those ids that are here, and which of `ids` they are."""
        if not len(self._ids):
            return np.empty(0, np.int64), np.zeros(len(ids), bool)
        places = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        hit: NDArray[np.bool_] = self._ids[places] == ids
        return places[hit], hit


def _at(log: LogReader, epoch: int, since: _Since) -> tuple[EpochRecord, dict[_Columns, _Past]]:
    """The last record up to `epoch`, and all rows that have changed since as they were then."""
    pasts = {which: _Past(since.changed(which), empty) for which, empty in since.empty.items()}
    record = None
    for record in recover(log, upto=epoch):
        for which, past in pasts.items():
            if (rows := which.of(record)) is not None:
                past.see(rows)
    assert record is not None, "recovery yields at least one record of an epoch that is there"
    return record, pasts
