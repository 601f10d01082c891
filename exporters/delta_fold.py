"""Makes bases: from an older base and the deltas since, or from a record of the log. One row is copied at a time,
so that a base of any size costs memory for its ids only.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
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

__all__ = ["FoldStopped", "fold_base", "sorted_rows"]

_CHUNK_ROWS = 65_536
_NICENESS = 10


class FoldStopped(Exception):
    """The exporter is closing or starts afresh: the base is not wanted any more."""


def fold_base(
    directory: ExportDirectory,
    manifest: Manifest,
    model: ServedModel,
    now_ms: int,
    stop: Callable[[], bool],
) -> Entry:
    """Writes the base of the manifest's head. Runs in a thread of its own; the manifest's files must stay.

    Raises:
      FoldStopped: `stop` said so; nothing is left behind.
      DeltaGap: a file of the chain is damaged or gone.
      ExportError, OSError: a file cannot be read, or the base cannot be written.
    """
    _yield_to_others()
    base = manifest.bases[-1]
    chain = [base, *(delta for delta in manifest.deltas if delta.epoch > base.epoch)]
    try:
        files = [read_export(directory.path, entry, model) for entry in chain]
    except (ExportError, FileNotFoundError) as error:
        raise DeltaGap(f"{error}; the export is begun anew") from error
    last = files[-1]
    entry = replace(last.entry, previous="", exported_at_ms=now_ms)
    lineage = Lineage.folded([file.lineage for file in files])
    tensors: dict[str, np.ndarray | Stream] = {f"dense/{name}": array for name, array in last.dense.items()}
    for name, table in model.tables.items():
        tensors |= _merged(name, [file.tables[name] for file in files], table.columns, stop)
    return directory.write_file(entry, export_document(model.model_id, entry, lineage), tensors)


def _yield_to_others() -> None:
    # On Linux niceness belongs to a thread. A fold has all the time until the next; training has none.
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def _merged(
    name: str, sources: Sequence[ExportedRows], columns: Sequence[str], stop: Callable[[], bool]
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
    held = {column: [getattr(rows, column) for rows in sources] for column in columns}
    return _base_tensors(name, ids, held, source, row, stop)


def sorted_rows(
    name: str, rows: TableRows, columns: Sequence[str], stop: Callable[[], bool]
) -> dict[str, np.ndarray | Stream]:
    """The rows of one table of a record, as a base holds them."""
    order = np.argsort(rows.ids, kind="stable")
    held = {column: [getattr(rows, column)] for column in columns}
    return _base_tensors(name, rows.ids[order], held, np.zeros(len(order), np.int32), order, stop)


def _base_tensors(
    name: str,
    ids: NDArray[np.uint64],
    columns: Mapping[str, Sequence[np.ndarray]],
    source: NDArray[np.int32],
    row: NDArray[np.int64],
    stop: Callable[[], bool],
) -> dict[str, np.ndarray | Stream]:
    """A base's tensors of one table, whose i-th row is in each column `arrays[source[i]][row[i]]`."""

    def chunks(arrays: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        for start in range(0, len(ids), _CHUNK_ROWS):
            if stop():
                raise FoldStopped
            of, at = source[start : start + _CHUNK_ROWS], row[start : start + _CHUNK_ROWS]
            chunk = np.empty((len(of), *arrays[0].shape[1:]), arrays[0].dtype)
            for number in np.unique(of):
                mine = of == number
                chunk[mine] = arrays[number][at[mine]]
            yield chunk

    tensors: dict[str, np.ndarray | Stream] = {
        f"tables/{name}/{column}": Stream(
            arrays[0].dtype, (len(ids), *arrays[0].shape[1:]), partial(chunks, arrays)
        )
        for column, arrays in columns.items()
    }
    return tensors | {f"tables/{name}/ids": ids, f"tables/{name}/tombstones": np.empty(0, np.uint64)}
