"""Makes bases: from an older base and the deltas since, or from a record of the log. One row is copied at a time,
so that a base of any size costs memory for its ids only.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from exporters.delta_directory import ExportDirectory
from streamtrain.errors import DeltaGap, ExportError
from streamtrain.log.container import Stream
from streamtrain.log.record import TableRows
from streamtrain.serving.files import ExportedRows, Lineage, export_document, read_export
from streamtrain.serving.manifest import Entry, Manifest
from streamtrain.serving.model import ServedModel
from streamtrain.serving.weights import Encoding, encode

__all__ = ["FoldStopped", "fold_base", "sorted_rows"]

# Each source keeps a file descriptor while it is folded, of which the daemon commonly has 1,024, for three exports at once.
SOURCES_MAX = 320
_CHUNK_ROWS = 65_536
_NICENESS = 10


class FoldStopped(Exception):
    """The exporter is closing or starts afresh: the base is not wanted any more."""


def fold_base(
    directory: ExportDirectory,
    manifest: Manifest,
    model: ServedModel,
    dtype: Encoding,
    now_ms: int,
    stop: Callable[[], bool],
) -> Entry:
    """Writes the base of the manifest's head, its weights as `dtype`. Runs in a thread of its own; the manifest's files must stay.

    A long chain is folded in steps; the bases between them go again, a crash leaves one to `remove_orphans`.

    Raises:
      FoldStopped: `stop` said so; nothing is left behind.
      DeltaGap: a file of the chain is damaged or gone.
      ExportError, OSError: a file cannot be read, or the base cannot be written.
    """
    _yield_to_others()
    base = manifest.bases[-1]
    deltas = [delta for delta in manifest.deltas if delta.epoch > base.epoch]
    between: Entry | None = None
    try:
        while True:
            step, deltas = deltas[:SOURCES_MAX], deltas[SOURCES_MAX:]
            folded = _fold_step(directory, [base, *step], model, dtype, now_ms, stop)
            if not deltas:
                return folded
            before, between = between, folded
            if before is not None:
                directory.remove([before.name])
            base = folded
    finally:
        if between is not None:
            directory.remove([between.name])


def _fold_step(
    directory: ExportDirectory,
    chain: Sequence[Entry],
    model: ServedModel,
    dtype: Encoding,
    now_ms: int,
    stop: Callable[[], bool],
) -> Entry:
    """Writes the base that a base and the deltas behind it make."""
    try:
        files = [read_export(directory.path, entry, model) for entry in chain]
    except (ExportError, FileNotFoundError) as error:
        raise DeltaGap(f"{error}; the export is begun anew") from error
    last = files[-1]
    entry = replace(last.entry, previous="", exported_at_ms=now_ms)
    lineage = Lineage.folded([file.lineage for file in files])
    tensors: dict[str, np.ndarray | Stream] = {f"dense/{name}": array for name, array in last.dense.items()}
    for name, table in model.tables.items():
        tensors |= _merged(name, [file.tables[name] for file in files], table.columns, dtype, stop)
    return directory.write_file(entry, export_document(model.model_id, entry, lineage), tensors)


def _yield_to_others() -> None:
    # On Linux niceness belongs to a thread. A fold has all the time until the next; training has none.
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def _merged(
    name: str,
    sources: Sequence[ExportedRows],
    columns: Sequence[str],
    dtype: Encoding,
    stop: Callable[[], bool],
) -> dict[str, np.ndarray | Stream]:
    """One table after all of `sources`: the last row of each id, unless a tombstone came later; by ascending id."""
    ids = np.concatenate([part for rows in sources for part in (rows.ids, rows.tombstones)])
    ends = np.cumsum([len(rows.ids) + len(rows.tombstones) for rows in sources])
    starts = ends - [len(rows.ids) + len(rows.tombstones) for rows in sources]
    # The sort is stable, so of equal ids the newest source comes last.
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    newest = np.append(ids[1:] != ids[:-1], True) if len(ids) else np.empty(0, bool)
    ids, order = ids[newest], order[newest]
    source = np.searchsorted(ends, order, side="right").astype(np.int32)
    row = order - starts[source]
    alive = row < np.array([len(rows.ids) for rows in sources])[source]
    ids, source, row = ids[alive], source[alive], row[alive]
    return _base_tensors(name, ids, _Picked(sources, source, row, dtype, stop), columns)


def sorted_rows(
    name: str, rows: TableRows, columns: Sequence[str], dtype: Encoding, stop: Callable[[], bool]
) -> dict[str, np.ndarray | Stream]:
    """The rows of one table of a record, as a base holds them."""
    order = np.argsort(rows.ids, kind="stable")
    held = ExportedRows(rows.ids, rows.weights, rows.tombstones, rows.last_steps)
    picked = _Picked([held], np.zeros(len(order), np.int32), order, dtype, stop)
    return _base_tensors(name, rows.ids[order], picked, columns)


@dataclass(frozen=True, slots=True)
class _Picked:
    """Rows out of several sources: the i-th is row `row[i]` of `sources[source[i]]`, its weights to be encoded as `dtype`."""

    sources: Sequence[ExportedRows]
    source: NDArray[np.int32]
    row: NDArray[np.int64]
    dtype: Encoding
    stop: Callable[[], bool]

    def chunks(self, column: str) -> Iterator[np.ndarray]:
        """One column in pieces."""
        for start in range(0, len(self.row), _CHUNK_ROWS):
            if self.stop():
                raise FoldStopped
            yield self._chunk(column, start)

    def _chunk(self, column: str, start: int) -> np.ndarray:
        of, at = self.source[start : start + _CHUNK_ROWS], self.row[start : start + _CHUNK_ROWS]
        if column not in ("weights", "scales"):
            return _gathered([getattr(rows, column) for rows in self.sources], of, at)
        columns = encode(np.empty((0, 1), np.float32), self.dtype)
        if all(rows.weights.dtype == columns["weights"].dtype for rows in self.sources):
            # As they are: to encode again what was encoded would add a second error.
            return _gathered([getattr(rows, column) for rows in self.sources], of, at)
        vectors = np.empty((len(of), self.sources[0].weights.shape[1]), np.float32)
        for number in np.unique(of):
            mine = of == number
            vectors[mine] = self.sources[number].vectors(at[mine])
        return encode(vectors, self.dtype)[column]


def _gathered(arrays: Sequence[np.ndarray], of: NDArray[np.int32], at: NDArray[np.int64]) -> np.ndarray:
    chunk = np.empty((len(of), *arrays[0].shape[1:]), arrays[0].dtype)
    for number in np.unique(of):
        mine = of == number
        chunk[mine] = arrays[number][at[mine]]
    return chunk


def _base_tensors(
    name: str, ids: NDArray[np.uint64], picked: _Picked, columns: Sequence[str]
) -> dict[str, np.ndarray | Stream]:
    """A base's tensors of one table, which has `columns` and those that the encoding of its weights adds."""
    rows, dim = len(ids), picked.sources[0].weights.shape[1]
    encoded = encode(np.empty((0, dim), np.float32), picked.dtype)
    tensors: dict[str, np.ndarray | Stream] = {
        f"tables/{name}/ids": ids,
        f"tables/{name}/tombstones": np.empty(0, np.uint64),
    }
    for column in dict.fromkeys((*columns, *encoded)):
        like = encoded[column] if column in encoded else getattr(picked.sources[0], column)
        shape = (rows, *like.shape[1:])
        tensors[f"tables/{name}/{column}"] = Stream(like.dtype, shape, partial(picked.chunks, column))
    return tensors
