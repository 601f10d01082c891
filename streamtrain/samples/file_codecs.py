"""Reads samples from files: JSON lines (plain, gzip, zstd) and Parquet."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streamtrain.errors import SourceError
from streamtrain.samples.codec import RECORD_BYTES_MAX, FileRows

__all__ = ["JsonLines", "Parquet", "reading_as", "table_rows", "warn_absent"]

logger = logging.getLogger(__name__)

RUN_BYTES_MAX = 16 << 20
"""A run of lines ends when it has grown to this, so that long lines cost no more memory than short ones."""

_PLAIN = (".jsonl", ".ndjson", ".json")
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_BUFFER_BYTES = 1 << 17
_WHITE = b" \t\r\n"


class JsonLines:
    """A `FileCodec`: a record a line, in plain, gzip or zstd files. Rows are lines, counted from 0.

    Blank lines count as rows but hold no record. Of a line longer than `record_bytes_max` only so much is read as shows
    that it is too long; the decoder refuses it.

    Args:
      record_bytes_max: the decoder's bound, or more.
    """

    extensions = tuple(plain + compressed for plain in _PLAIN for compressed in ("", *_COMPRESSIONS))
    growing = _PLAIN

    def __init__(self, record_bytes_max: int = RECORD_BYTES_MAX) -> None:
        self._record_bytes_max = record_bytes_max

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
        """As `FileCodec.rows`."""
        with reading_as(path, "as JSON lines"), _opened(path) as file:
            if start_byte is not None:
                file.seek(start_byte)
                lines = self._lines(file, start_row, start_byte, complete_only)
            else:
                lines = self._lines(file, 0, 0, complete_only)
                # Lines have no index: rows before the start are read and dropped.
                if not all(next(lines, None) for _ in range(start_row)):
                    return
            by_byte = path.name.lower().endswith(self.growing)
            yield from _runs(lines, start_row, rows_max, by_byte)

    def _lines(
        self, file: BinaryIO, row: int, byte: int, complete_only: bool
    ) -> Iterator[tuple[int, int, bytes]]:
        """Per line: the row after it, the byte after it, and its payload (blank: empty)."""
        bound = self._record_bytes_max + 2  # A line as long as is allowed ends with \r\n at most.
        while line := file.readline(bound):
            size = len(line)
            ended = line.endswith(b"\n")
            while not ended and (more := file.readline(1 << 16)):
                size += len(more)
                ended = more.endswith(b"\n")
                # A short line goes on where the file grew between the two reads; a long one is refused, so its
                # beginning suffices.
                line += more[: bound - len(line)]
            if complete_only and not ended:
                return
            row, byte = row + 1, byte + size
            yield row, byte, line if size > len(line) else line.strip(_WHITE)


def _runs(
    lines: Iterator[tuple[int, int, bytes]], first: int, rows_max: int, by_byte: bool
) -> Iterator[FileRows]:
    """Gathers lines into runs of at most `rows_max` rows, and hardly more than `RUN_BYTES_MAX` bytes."""
    rows: list[int] = []
    records: list[bytes] = []
    size, next_row, next_byte = 0, first, 0
    for row_after, byte_after, payload in lines:
        next_row, next_byte = row_after, byte_after
        if payload:
            rows.append(row_after - 1)
            records.append(payload)
            size += len(payload)
        if next_row - first >= rows_max or size >= RUN_BYTES_MAX:
            yield _run(first, next_row, rows, records, next_byte if by_byte else None)
            first, rows, records, size = next_row, [], [], 0
    if next_row > first:
        yield _run(first, next_row, rows, records, next_byte if by_byte else None)


def _run(first: int, next_row: int, rows: list[int], records: list[bytes], next_byte: int | None) -> FileRows:
    return FileRows(first, next_row, np.array(rows, np.int64), records, next_byte)


class Parquet:
    """A `FileCodec`: Parquet files, read in batches of rows, only the columns that samples read."""

    extensions = (".parquet", ".pq")
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
        """As `FileCodec.rows`. A run may be shorter than `rows_max` anywhere, not just at the end."""
        with reading_as(path, "as Parquet"), path.open("rb") as raw, pq.ParquetFile(raw) as file:
            present = file.schema_arrow.names
            wanted = [name for name in columns if name in present]
            warn_absent(path, columns, present)
            group, row = _row_group_of(file, start_row)
            groups = range(group, file.num_row_groups)
            # Without a column the batches would say nothing, not even how many rows they have.
            names = wanted or file.schema_arrow.names[:1]
            for batch in file.iter_batches(rows_max, row_groups=groups, columns=names, use_threads=False):
                first, row = row, row + batch.num_rows
                if row > start_row:
                    skipped = max(start_row - first, 0)
                    yield table_rows(first + skipped, pa.Table.from_batches([batch.slice(skipped)]))


def table_rows(first: int, table: pa.Table) -> FileRows:
    """A run of rows of a columnar file."""
    next_row = first + table.num_rows
    return FileRows(first, next_row, np.arange(first, next_row), table)


def warn_absent(path: Path, columns: Sequence[str], present: Sequence[str]) -> None:
    """Says which of the columns that samples read a columnar file does not have."""
    if absent := ", ".join(sorted(set(columns) - set(present))):
        logger.warning("%s has no column %s; there they count as missing", path, absent)


def _row_group_of(file: pq.ParquetFile, row: int) -> tuple[int, int]:
    """The row group that holds `row`, and the first row of it; behind the end, the number of groups."""
    first = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if row < first + rows:
            return group, first
        first += rows
    return file.num_row_groups, first


@contextmanager
def reading_as(path: Path, form: str) -> Iterator[None]:
    """Makes one typed error of all the ways in which a damaged file shows."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        # The operating system's own errors have a number; Arrow's about content have none.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise SourceError(
            f"{path}: cannot be read {form}: {error}. Is the file whole, and its name's ending right? "
            "Replace it, or take it out of the source's paths"
        ) from error


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The bytes of the file, decompressed as its name says; also where several compressed streams follow another."""
    for extension, compression in _COMPRESSIONS.items():
        if path.name.lower().endswith(extension):
            # Arrow's streams tell a truncated file from one that ends; python-zstandard's do not.
            with path.open("rb") as raw, pa.input_stream(raw, compression=compression) as stream:
                yield cast(BinaryIO, io.BufferedReader(stream, _BUFFER_BYTES))
            return
    with path.open("rb", buffering=_BUFFER_BYTES) as file:
        yield file
