"""The files of a reverse dictionary: `values/<slot>/<number>.parquet` in the log's directory, columns `id` and `value`.

A file has its name when it is whole, and never changes. Several may tell of one id, and then say the same.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["VALUES", "read_segment", "remove_segments", "segments", "write_segment"]

VALUES = "values"
_NAME = re.compile(r"(\d{10})\.parquet")


def segments(directory: Path) -> list[Path]:
    """The files of one slot, oldest first; none where there is no such directory. Raises OSError."""
    try:
        return sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name))
    except FileNotFoundError:
        return []


def read_segment(path: Path, columns: Sequence[str] = ("id", "value")) -> pa.Table:
    """Raises OSError, also where it is damaged, and FileNotFoundError where it was united with others meanwhile."""
    try:
        return pq.read_table(path, columns=list(columns), partitioning=None, memory_map=False)
    except (pa.ArrowException, KeyError) as error:
        raise OSError(f"{path} is no file of a reverse dictionary ({error}); remove it") from error


def write_segment(directory: Path, table: pa.Table) -> Path:
    """Adds a file, newer than the others. A death on the way leaves nothing that has a name of ours. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    there = segments(directory)
    number = int(there[-1].stem) + 1 if there else 0
    path = directory / f"{number:010d}.parquet"
    aside = directory / f"{path.name}.{os.getpid()}.aside"
    try:
        pq.write_table(table, aside, compression="zstd")
        aside.rename(path)
    finally:
        with suppress(OSError):
            aside.unlink()
    return path


def remove_segments(paths: Iterator[Path] | Sequence[Path]) -> None:
    """Raises OSError."""
    for path in paths:
        path.unlink(missing_ok=True)
