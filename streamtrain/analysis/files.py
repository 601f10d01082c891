"""A table's rows as CSV or Parquet, piece by piece, under their name only when they are whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from streamtrain.analysis.ranking import norms
from streamtrain.analysis.snapshot import Snapshot
from streamtrain.dictionary.reader import Dictionary
from streamtrain.errors import StreamtrainError
from streamtrain.log.record import TableRows

__all__ = ["whole_file", "write_csv", "write_parquet"]


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its name at the end, or is removed where something is raised.

    Raises:
      StreamtrainError: the file cannot be written; one that was there before is untouched.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.aside")
    try:
        yield aside
        aside.replace(path)
    except OSError as error:
        # Arrow gives the number without the words, and words that name the file beside.
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise StreamtrainError(f"cannot write {path}: {reason}; choose another path, or mend that") from error
    finally:
        with suppress(OSError):
            aside.unlink()


def write_parquet(snapshot: Snapshot, path: Path, dictionary: Dictionary | None = None) -> int:
    """Writes all rows by id: `id` uint64, `count`, `last_step`, `age` uint32, `norm` float32, `vector` a fixed-size
    list of float32, and where there is a dictionary `slot` and `value`, strings. Returns how many rows.

    Raises:
      StreamtrainError: it cannot be written.
    """

    def vectors(rows: TableRows) -> dict[str, pa.Array]:
        flat = pa.array(rows.weights.reshape(-1))
        return {"vector": pa.FixedSizeListArray.from_arrays(flat, snapshot.dim)}

    with whole_file(path) as aside:
        return _write(snapshot, dictionary, vectors, lambda schema: pq.ParquetWriter(aside, schema))


def write_csv(snapshot: Snapshot, path: Path, dictionary: Dictionary | None = None) -> int:
    """As `write_parquet`, with a heading, and the vector as columns `w0`, `w1`, ..., each as the shortest decimal that is
    that float32.

    Raises:
      StreamtrainError: it cannot be written.
    """

    def vectors(rows: TableRows) -> dict[str, pa.Array]:
        return {f"w{d}": pa.array(np.ascontiguousarray(rows.weights[:, d])) for d in range(snapshot.dim)}

    with whole_file(path) as aside:
        return _write(snapshot, dictionary, vectors, lambda schema: pa_csv.CSVWriter(aside, schema))


def _write(
    snapshot: Snapshot,
    dictionary: Dictionary | None,
    vectors: Callable[[TableRows], dict[str, pa.Array]],
    writer_of: Callable[[pa.Schema], Any],
) -> int:
    def batch(rows: TableRows) -> pa.RecordBatch:
        named = {
            "id": pa.array(rows.ids),
            "count": pa.array(rows.counts),
            "last_step": pa.array(rows.last_steps),
            "age": pa.array(snapshot.ages(rows.last_steps)),
            "norm": pa.array(norms(rows.weights).astype(np.float32)),
        }
        if dictionary is not None:
            named["slot"], named["value"] = dictionary.find(rows.ids)
        return pa.RecordBatch.from_pydict(named | vectors(rows))

    schema = batch(snapshot.rows(0, 0)).schema
    with closing(writer_of(schema)) as writer:
        for rows in snapshot.chunks():
            writer.write_batch(batch(rows))
    return len(snapshot)
