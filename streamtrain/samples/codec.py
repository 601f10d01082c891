"""The contracts of codecs: of records (payloads of one sample or many) and of files (rows of one sample or many)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from streamtrain import plugins
from streamtrain.errors import BadSample, ConfigError
from streamtrain.samples.problems import Fault
from streamtrain.samples.schema import Schema

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "RECORD_BYTES_MAX",
    "CodecError",
    "FileCodec",
    "FileRows",
    "RecordCodec",
    "RecordRows",
    "file_codec_of",
]

RECORD_BYTES_MAX = 1 << 20
"""Default bound on one record. A longer one is a bad sample: Kafka's own default bound is the same 1 MiB."""


class CodecError(Exception):
    """These records cannot be decoded together; a part of them may be. It never leaves the package."""


@dataclass(frozen=True, slots=True)
class RecordRows:
    """What payloads hold.

    Attributes:
      table: all rows in order: a sample each, or a tree where the schema has levels.
      counts: `[n]` int64, how many rows each of the n records has; those refused have none. None: one each.
      bad: by index, what is wrong with a record that is refused as a whole.
      faults: what is wrong with single nodes of the others.
    """

    table: pa.Table
    counts: NDArray[np.int64] | None = None
    bad: Mapping[int, BadSample] = field(default_factory=dict)
    faults: Sequence[Fault] = ()


class RecordCodec(Protocol):
    """Turns payloads into the columns that the schema reads.

    A class with this shape is registered under the entry-point group `streamtrain.codecs` and made by `cls(schema)`.
    It is called from several threads at once.
    """

    def __init__(self, schema: Schema) -> None: ...

    def decode(self, records: Sequence[bytes]) -> RecordRows:
        """What the records hold. A record must give the same rows whatever stands beside it.

        Args:
          records: one or more payloads, none of them empty.

        Raises:
          BadSample, or anything else: it cannot decode these together. Each half of them is tried then, down to a single
            record, which is refused for that reason.
        """
        ...


@dataclass(frozen=True, slots=True)
class FileRows:
    """A run of rows of a file, in order.

    Attributes:
      first_row: where the run begins; row numbers count from 0.
      next_row: the row to read after it.
      rows: `[n]` int64, each record's row number; rows without a record (blank lines) are left out.
      records: n payloads as bytes, or an Arrow table of n rows.
      next_byte: where `next_row` begins in the file, for a later `rows(start_byte=...)`; None where rows cannot
        be found by byte (compressed files, Parquet).
    """

    first_row: int
    next_row: int
    rows: NDArray[np.int64]
    records: list[bytes] | pa.Table
    next_byte: int | None = None


class FileCodec(Protocol):
    """Reads files of one format, a bounded run of rows at a time, never a whole file.

    A class with this shape is registered under the entry-point group `streamtrain.file_codecs` and made by `cls()`.

    Attributes:
      extensions: how the names of its files end, such as `.jsonl.gz`.
      growing: those of `extensions` whose files can be read while another process appends to them.
    """

    extensions: tuple[str, ...]
    growing: tuple[str, ...]

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
        """The rows of `path` from `start_row` on. Blocking: run it in a thread. Closing the iterator closes the file.

        Args:
          path: the file.
          start_row: the first row wanted. At or beyond the end: nothing is yielded.
          columns: the fields that samples read; a columnar format reads no others.
          rows_max: bound on the rows of one run.
          complete_only: leave out a last line that has no newline yet, because it may still be being written.
          start_byte: a `next_byte` that came with `start_row` as `next_row`: seek there instead of counting rows.

        Raises:
          FileNotFoundError, PermissionError: as opening a file does.
          SourceError: the file is damaged or of another format; names it.
        """
        ...


def file_codec_of(path: Path) -> FileCodec:
    """A codec for `path`, chosen by the longest extension that its name ends with.

    Raises:
      ConfigError: no codec reads such files.
    """
    best: tuple[int, FileCodec] | None = None
    known: list[str] = []
    for name in plugins.names("file_codecs"):
        codec: FileCodec = plugins.load("file_codecs", name)()
        known.extend(codec.extensions)
        length = max((len(e) for e in codec.extensions if path.name.lower().endswith(e)), default=0)
        if length and (best is None or length > best[0]):
            best = (length, codec)
    if best is None:
        raise ConfigError(
            f"{path}: no file codec reads such files; names end with one of {', '.join(sorted(known))}"
        )
    return best[1]
