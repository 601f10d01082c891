"""Reads samples from Arrow IPC: files with a footer, and streams in a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from streamtrain.samples.codec import FileRows
from streamtrain.samples.file_codecs import reading_as, table_rows, warn_absent

__all__ = ["ArrowFiles"]

_MAGIC = b"ARROW1"


class ArrowFiles:
    """A `FileCodec`: a row is a sample, or a tree where the schema has levels."""

    extensions = (".arrow", ".ipc", ".feather", ".arrows")
    growing = ()

    def rows(
        self,
        path: Path,
        start_row: int,
        columns: Sequence[str],
        rows_max: int,
        *,
        complete_only: bool = False,
        start_byte: int | None = None,
    ) -> Iterator[FileRows]:
        """As `FileCodec.rows`. A run may be shorter than `rows_max` anywhere: it ends with its record batch."""
        with reading_as(path, "as Arrow IPC"), pa.memory_map(str(path)) as file:
            row, wanted = 0, None
            for batch in _batches(file):
                if wanted is None:
                    wanted = [name for name in columns if name in batch.schema.names]
                    warn_absent(path, columns, batch.schema.names)
                first, row = row, row + batch.num_rows
                if row <= start_row:
                    continue
                table = pa.Table.from_batches([batch]).select(wanted or batch.schema.names[:1])
                # What a damaged file claims to hold is not looked at before this.
                table.validate(full=True)
                for at in range(max(start_row - first, 0), batch.num_rows, rows_max):
                    yield table_rows(first + at, table.slice(at, rows_max))


def _batches(file: Any) -> Iterator[pa.RecordBatch]:
    is_file = file.read(len(_MAGIC)) == _MAGIC
    file.seek(0)
    if is_file:
        reader = pa.ipc.open_file(file)
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)
    else:
        yield from pa.ipc.open_stream(file)
