"""One table as it was at an epoch: rows sorted by id, read in pieces from the mapped files of the log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from streamtrain.errors import ConfigError, EpochMissing, StreamtrainError
from streamtrain.log.merge import gather, merge
from streamtrain.log.ranges import merge_by_ranges
from streamtrain.log.reader import LogReader
from streamtrain.log.record import EpochRecord, FilterRows, TableRows
from streamtrain.log.recovery import restored
from streamtrain.log.rollback import earliest
from streamtrain.sparse.settings import TableSettings

if TYPE_CHECKING:
    from streamtrain.sparse.decay import RowDecay

__all__ = ["CHUNK_ROWS", "Snapshot", "merged", "open_snapshot"]

CHUNK_ROWS = 1 << 16
# Each mapped file keeps a descriptor; a process commonly has 1,024, and two epochs are compared at a time.
_MAPPED_MAX = 256


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The rows of a table at an epoch. Weights and optimizer state stay in the files until they are asked for.

    Where the table decays they are what they have become by then, as the trainer and followers see them.

    Memory: about 50 MB while it is opened, whatever the number of rows, and then one piece of `CHUNK_ROWS` rows. Ids and
    where their rows stand, 16 bytes a row, are pages of a nameless file in the system's temporary directory. Beyond 256
    epochs since the base, the rows that the older of them changed are held as well.

    Attributes:
      table: its name.
      epoch: the epoch.
      step_next: steps taken by the model up to then.
      samples_total: samples learned by the model up to then.
      dim: floats a vector.
      optimizer_floats: floats of optimizer state a row.
      ids: `[R]` uint64, ascending.
      filters: what records say of the table's admission filter, oldest first; empty where it has none.
    """

    table: str
    epoch: int
    step_next: int
    samples_total: int
    dim: int
    optimizer_floats: int
    ids: NDArray[np.uint64]
    _locations: NDArray[np.int64]
    _parts: Sequence[TableRows]
    filters: Sequence[FilterRows] = ()
    _decay: RowDecay | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in the log: id, count, last step, weights and optimizer state."""
        return 16 + 4 * (self.dim + self.optimizer_floats)

    def rows(self, first: int, end: int) -> TableRows:
        """Copies of rows `first` to `end`, in the order of ids."""
        return self._at(self.ids[first:end], self._locations[first:end])

    def chunks(self) -> Iterator[TableRows]:
        """All rows, in pieces of at most CHUNK_ROWS."""
        for first in range(0, len(self), CHUNK_ROWS):
            yield self.rows(first, first + CHUNK_ROWS)

    def find(self, ids: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Where each id stands in `ids`, `[N]` int64; -1 where the table has no row of it."""
        places = np.searchsorted(self.ids, ids)
        inside = np.minimum(places, max(len(self.ids) - 1, 0))
        there = self.ids[inside] == ids if len(self.ids) else np.zeros(len(ids), bool)
        return np.where(there, places, -1)

    def pick(self, places: NDArray[np.int64]) -> TableRows:
        """Copies of the rows at these places (`[N]` int64), in their order."""
        return self._at(self.ids[places], self._locations[places])

    def ages(self, last_steps: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Steps since the last update, `[N]` uint32; 0 for a row that the newest step changed. Right modulo 2^32."""
        return np.uint32((self.step_next - 1) % 2**32) - last_steps

    def _at(self, ids: NDArray[np.uint64], locations: NDArray[np.int64]) -> TableRows:
        if not len(ids):
            return TableRows.empty(self.dim, self.optimizer_floats)
        rows = _taken(self._parts, ids, locations)
        if self._decay is not None:
            self._decay.fade_columns(rows.weights, rows.slots, rows.last_steps, self.step_next)
        return rows


def open_snapshot(log: LogReader, table: str, at: int | None = None) -> Snapshot:
    """The table at epoch `at`, or at the newest. Every file that is read is checked against its digest.

    A daemon may append, fold and collect meanwhile: what is open stays readable, and where a file goes before it is
    opened, this begins again from the newer base.

    Raises:
      ConfigError: the model has no such table; the text names those that there are.
      EpochMissing: the epoch is not in the log; the text says which can be looked at.
      CorruptRecord, LogError: as `LogReader`.
    """
    known = log.model.job.get("tables", {})
    if known and table not in known:
        raise ConfigError(f"{log.path}: there is no table {table!r}; there are: {', '.join(sorted(known))}")
    try:
        return restored(log, lambda records: _snapshot(log, table, records), at)
    except EpochMissing as error:
        first, head = earliest(log), log.head()
        if at is None or first is None or head is None or first <= at <= head:
            raise
        raise EpochMissing(
            f"{log.path}: the model of epoch {at} cannot be made from what the log holds; epochs {first} to {head} can"
        ) from error


def _snapshot(log: LogReader, table: str, records: Iterator[EpochRecord]) -> Snapshot:
    parts: list[TableRows] = []
    filters: list[FilterRows] = []
    last: tuple[int, int, int] | None = None
    for record in records:
        last = (record.epoch, record.step_next, record.samples_total)
        if table in record.tables:
            parts.append(record.tables[table])
        if len(parts) > _MAPPED_MAX:
            parts[1:] = [_united(parts[1:])]
        if table in record.filters:
            filters.append(record.filters[table])
        if len(filters) > _MAPPED_MAX:
            filters[1:] = [_united_filters(filters[1:])]
    if last is None:
        raise EpochMissing(f"{log.path} is empty: the model has not started yet")
    if len(widths := {(rows.weights.shape[1], rows.slots.shape[1]) for rows in parts}) > 1:
        raise ConfigError(f"{log.path}: table {table!r} changes its width on the way: {sorted(widths)}")
    ids, locations = merged(parts)
    dim, floats = widths.pop() if widths else (_configured_dim(log, table), 0)
    return Snapshot(table, *last, dim, floats, ids, locations, parts, filters, _decay_of(log, table))


def merged(parts: Sequence[TableRows | FilterRows]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """What remains of parts, oldest first: ids, ascending, and where the row of each stands, for `gather`.

    Raises:
      StreamtrainError: no room for the temporary file.
    """
    if not parts:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    try:
        ids, locations = merge_by_ranges([(rows.ids, rows.tombstones) for rows in parts])
    except OSError as error:
        raise StreamtrainError(
            f"16 bytes a row of temporary files find no room ({error}): make room there, or set TMPDIR"
        ) from error
    # As plain arrays: what is cut from them goes to Arrow and to people.
    return np.asarray(ids), np.asarray(locations)


def _configured_dim(log: LogReader, table: str) -> int:
    """Of a table without a row, what the job says."""
    return int(log.model.job.get("tables", {}).get(table, {}).get("dim", 0))


def _decay_of(log: LogReader, table: str) -> RowDecay | None:
    settings = log.model.job.get("tables", {}).get(table, {})
    if settings.get("decay") is None:
        return None
    # numba is loaded with them, which nothing else here needs.
    from streamtrain.sparse.decay import RowDecay
    from streamtrain.sparse.optimizers import statistics_of

    known = TableSettings.model_validate(dict(settings))
    assert known.decay is not None
    return RowDecay(known.decay, statistics_of(known.optimizer, known.dim))


def _united(parts: Sequence[TableRows]) -> TableRows:
    """What several records say about a table, as one: their last rows, and the ids that they removed last."""
    ids, locations, removed = _last_words(parts)
    return _taken(parts, ids, locations, removed)


def _united_filters(parts: Sequence[FilterRows]) -> FilterRows:
    ids, locations, removed = _last_words(parts)
    pieces = [parts[0].values[:0], *gather([part.values for part in parts], locations)]
    return FilterRows(ids, np.concatenate(pieces), removed)


def _last_words(
    parts: Sequence[TableRows | FilterRows],
) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.uint64]]:
    """Ids that the parts wrote last, where their rows stand, and ids that they removed last."""
    ids, locations = merge((part.ids, part.tombstones) for part in parts)
    removed = np.unique(np.concatenate([part.tombstones for part in parts]))
    return ids, locations, np.setdiff1d(removed, ids, assume_unique=True)


def _taken(
    parts: Sequence[TableRows],
    ids: NDArray[np.uint64],
    locations: NDArray[np.int64],
    tombstones: NDArray[np.uint64] | None = None,
) -> TableRows:
    """Copies of the rows at `locations`, as `merge` numbers them."""
    columns = {}
    for name in ("weights", "slots", "counts", "last_steps"):
        arrays: list[np.ndarray] = [getattr(part, name) for part in parts]
        whole = np.empty((len(ids), *arrays[0].shape[1:]), arrays[0].dtype)
        first = 0
        for piece in gather(arrays, locations):
            whole[first : first + len(piece)] = piece
            first += len(piece)
        columns[name] = whole
    return TableRows(ids, **columns, tombstones=np.empty(0, np.uint64) if tombstones is None else tombstones)
