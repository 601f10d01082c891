"""How a table came to what it is: rows that are new, changed and gone, epoch by epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamtrain.errors import EpochMissing
from streamtrain.log.reader import LogReader
from streamtrain.log.record import EpochRecord
from streamtrain.log.recovery import recover
from streamtrain.log.rollback import earliest

__all__ = ["EpochRates", "rates"]

_CHUNK_IDS = 1 << 20


@dataclass(frozen=True, slots=True)
class EpochRates:
    """What one epoch did to a table.

    Attributes:
      epoch, steps, samples, committed_at_ms: the epoch, how long it was, and when.
      new: rows that it has and the epoch before had not.
      changed: rows that both have and it wrote.
      removed: rows that the epoch before had and it has not: expired, or undone by a rollback.
    """

    epoch: int
    steps: int
    samples: int
    committed_at_ms: int
    new: int
    changed: int
    removed: int


@dataclass(frozen=True, slots=True)
class _Written:
    """What a record says of a table, copied: records that are held keep their files open."""

    epoch: int
    steps: int
    samples: int
    committed_at_ms: int
    ids: NDArray[np.uint64]
    removed: NDArray[np.uint64]


def rates(log: LogReader, table: str, count: int, upto: int | None = None) -> list[EpochRates]:
    """The newest `count` epochs up to `upto` of which the log tells what was there before, oldest first.

    Memory: 16 bytes for each row that these epochs wrote. Reads the ids of the newest base before them.

    Raises:
      CorruptRecord, LogError: as `LogReader`.
      EpochMissing: `upto` is not in the log.
    """
    while True:
        before = log.bases(), log.epochs()[:1]
        try:
            return _rates(log, table, count, upto)
        except EpochMissing:
            # Collected while it was read, the oldest first: then there are fewer epochs to tell of.
            if (log.bases(), log.epochs()[:1]) == before:
                raise


def _rates(log: LogReader, table: str, count: int, upto: int | None) -> list[EpochRates]:
    epochs, oldest = log.epochs(), earliest(log)
    if count <= 0 or oldest is None:
        return []
    # Epoch 0 has nothing before it; of any other first one, a base must tell what there was.
    first = 0 if oldest == 0 else oldest + 1
    told = [epoch for epoch in epochs if epoch >= first and (upto is None or epoch <= upto)][-count:]
    if not told:
        return []
    written = [_written(log.read(epoch), table) for epoch in told]
    ids = np.unique(np.concatenate([part for one in written for part in (one.ids, one.removed)]))
    there = np.zeros(len(ids), bool)
    for before in recover(log, told[0] - 1) if told[0] > 0 else ():
        if table in before.tables:
            _mark(ids, there, before.tables[table].ids, True)
            _mark(ids, there, before.tables[table].tombstones, False)
    return list(_told(written, ids, there))


def _written(record: EpochRecord, table: str) -> _Written:
    rows = record.tables.get(table)
    ids = np.empty(0, np.uint64) if rows is None else rows.ids.copy()
    removed = np.empty(0, np.uint64) if rows is None else rows.tombstones.copy()
    steps = record.step_next - record.step_first
    return _Written(record.epoch, steps, record.samples, record.committed_at_ms, ids, removed)


def _told(written: list[_Written], ids: NDArray[np.uint64], there: NDArray[np.bool_]) -> Iterator[EpochRates]:
    for one in written:
        places, gone = np.searchsorted(ids, one.ids), np.searchsorted(ids, one.removed)
        known = int(there[places].sum())
        removed = int(there[gone].sum())
        there[places], there[gone] = True, False
        new = len(places) - known
        yield EpochRates(one.epoch, one.steps, one.samples, one.committed_at_ms, new, known, removed)


def _mark(
    ids: NDArray[np.uint64], there: NDArray[np.bool_], written: NDArray[np.uint64], value: bool
) -> None:
    """Sets `there` for those of `ids` (ascending) that are among `written`, which may be a whole base, mapped."""
    if not len(ids):
        return
    for first in range(0, len(written), _CHUNK_IDS):
        part = written[first : first + _CHUNK_IDS]
        places = np.minimum(np.searchsorted(ids, part), len(ids) - 1)
        there[places[ids[places] == part]] = value
