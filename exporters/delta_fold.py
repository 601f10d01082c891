"""Makes bases: from an older base and the deltas since, or from a record of the log. Ids are merged range by range and
rows copied piece by piece, so that a base of any size costs no memory of its size (`streamtrain.log.ranges`).
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
from streamtrain.log.merge import ROW_BITS, ROW_MASK, gather
from streamtrain.log.ranges import merge_by_ranges
from streamtrain.log.record import TableRows
from streamtrain.serving.files import ExportedRows, Lineage, export_document, read_export
from streamtrain.serving.manifest import Entry, Manifest
from streamtrain.serving.model import ServedModel
from streamtrain.serving.weights import Encoding, encode

__all__ = ["FoldStopped", "fold_base", "sorted_rows"]

# Each source keeps a file descriptor while it is folded, of which the daemon commonly has 1,024, for three exports at once.
SOURCES_MAX = 320
# Those that were compressed stand unpacked on the disk meanwhile.
UNPACKED_BYTES_MAX = 256 << 20
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
            count = _sources(deltas)
            step, deltas = deltas[:count], deltas[count:]
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


def _sources(deltas: Sequence[Entry]) -> int:
    """How many of them are folded at once: one at least, where there is one."""
    unpacked = np.cumsum([delta.unpacked_bytes for delta in deltas[:SOURCES_MAX]])
    return max(1, int(np.searchsorted(unpacked, UNPACKED_BYTES_MAX, side="right")))


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
        files = [read_export(directory.path, entry, model, directory.aside) for entry in chain]
    except (ExportError, FileNotFoundError) as error:
        raise DeltaGap(f"{error}; the export is begun anew") from error
    last = files[-1]
    entry = replace(last.entry, previous="", exported_at_ms=now_ms, unpacked_bytes=0)
    lineage = Lineage.folded([file.lineage for file in files])
    tensors: dict[str, np.ndarray | Stream] = {f"dense/{name}": array for name, array in last.dense.items()}
    for name, table in model.tables.items():
        tensors |= _merged(name, [file.tables[name] for file in files], table.columns, dtype, directory, stop)
    return directory.write_file(entry, export_document(model.model_id, entry, lineage), tensors)


def _yield_to_others() -> None:
    # On Linux niceness belongs to a thread. A fold has all the time until the next; training has none.
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def sorted_rows(
    name: str,
    rows: TableRows,
    columns: Sequence[str],
    dtype: Encoding,
    directory: ExportDirectory,
    stop: Callable[[], bool],
) -> dict[str, np.ndarray | Stream]:
    """The rows of one table of a record, as a base holds them. Raises: FoldStopped."""
    held = ExportedRows(rows.ids, rows.weights, rows.tombstones, rows.last_steps)
    return _merged(name, [held], columns, dtype, directory, stop)


def _merged(
    name: str,
    sources: Sequence[ExportedRows],
    columns: Sequence[str],
    dtype: Encoding,
    directory: ExportDirectory,
    stop: Callable[[], bool],
) -> dict[str, np.ndarray | Stream]:
    """One table after all of `sources`: the last row of each id, unless a tombstone came later; by ascending id."""

    def check() -> None:
        if stop():
            raise FoldStopped

    ids, locations = merge_by_ranges(
        [(rows.ids, rows.tombstones) for rows in sources], directory.aside, check
    )
    return _base_tensors(name, ids, _Picked(sources, locations, dtype, check), columns)


@dataclass(frozen=True, slots=True)
class _Picked:
    """Rows out of several sources, at `locations` as of `merge_by_ranges`, their weights to be encoded as `dtype`."""

    sources: Sequence[ExportedRows]
    locations: NDArray[np.int64]
    dtype: Encoding
    check: Callable[[], None]

    def chunks(self, column: str) -> Iterator[np.ndarray]:
        """One column in pieces."""
        for piece in self._encoded(column) if self._changes(column) else self._as_they_are(column):
            self.check()
            yield piece

    def _changes(self, column: str) -> bool:
        """Whether some source has its weights in another dtype. Else to encode again would add a second error."""
        wanted = encode(np.empty((0, 1), np.float32), self.dtype)["weights"].dtype
        return column in ("weights", "scales") and any(rows.weights.dtype != wanted for rows in self.sources)

    def _as_they_are(self, column: str) -> Iterator[np.ndarray]:
        return gather([getattr(rows, column) for rows in self.sources], self.locations)

    def _encoded(self, column: str) -> Iterator[np.ndarray]:
        for start in range(0, len(self.locations), _CHUNK_ROWS):
            part = self.locations[start : start + _CHUNK_ROWS]
            of, at = part >> ROW_BITS, part & ROW_MASK
            vectors = np.empty((len(part), self.sources[0].weights.shape[1]), np.float32)
            for number in np.flatnonzero(np.bincount(of)).tolist():
                mine = of == number
                vectors[mine] = self.sources[number].vectors(at[mine])
            yield encode(vectors, self.dtype)[column]


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
