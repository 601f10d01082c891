"""Reads samples from files: the consumer plug-in `files`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from consumers.file_list import list_files
from consumers.file_reader import FileReader, Place, chunk_of, reading
from consumers.handover import Handover
from streamtrain.errors import OffsetOutOfRange, PartitionMissing, SourceUnavailable
from streamtrain.samples.codec import FileRows, file_codec_of
from streamtrain.sources import Chunk, DataLoss, OnDataLoss, Positions, SourceSettings

__all__ = ["FileSettings", "FileSource"]


class FileSettings(SourceSettings):
    """Files, one after the other: by the order of `paths`, those of a glob in natural order (2 before 10)."""

    kind: Literal["files"]
    """Reads files."""
    paths: list[str] = Field(min_length=1, max_length=4096)
    """Files and globs, relative to the working directory. Names end with `.jsonl`, `.jsonl.gz`, `.jsonl.zst`, `.parquet`,
    `.arrow`."""
    follow: bool = False
    """Go on when the last file grows (plain JSON lines) or newer files appear. Files must only be appended to."""
    on_data_loss: OnDataLoss = "stop"
    """When a file was truncated or replaced: `stop`, or `skip`, which reads it from its beginning and writes the gap into the
    lineage. A file that is gone stops reading either way."""
    poll_interval_s: float = Field(default=0.2, gt=0, le=3600)
    """How often to look for more while following."""
    chunk_records_max: int = Field(default=4096, ge=1, le=1_000_000)
    """Rows that are decoded together at most."""
    buffer_records_max: int = Field(default=65_536, ge=1, le=100_000_000)
    """Rows read ahead; beyond it no more are read."""
    buffer_bytes_max: int = Field(default=64 << 20, ge=1024, le=1 << 40)
    """Bytes of rows read ahead; beyond it no more are read."""


class FileSource:
    """Reads files in order, in a thread, bounded in rows and bytes. A position is a file and a row in it.

    Rows have no time of their own: their record time is their event time, and without `schema.event_time` they have
    neither.

    The columns and positions of a file are trusted across restarts: a file with fewer rows than were learned is
    noticed, as is one that is truncated or replaced while it is followed; one rewritten with as many rows is not.
    """

    Settings = FileSettings
    sequential = True
    identity = ""

    def __init__(self, settings: FileSettings, *, until_end: bool = False) -> None:
        self._settings = settings
        self._handover = Handover(
            settings.buffer_records_max,
            settings.buffer_bytes_max,
            self._on_room,
            settings.chunk_records_max,
        )
        self._reader = FileReader(
            settings.paths,
            settings.chunk_records_max,
            self._handover,
            follow=settings.follow,
            until_end=until_end or not settings.follow,
            poll_interval_s=settings.poll_interval_s,
            skip_lost=settings.on_data_loss == "skip",
        )
        self._columns: Sequence[str] = ()
        self._thread: threading.Thread | None = None
        self._span_place: tuple[str, int, int | None] | None = None

    def use_columns(self, columns: Sequence[str]) -> None:
        """Reads no other columns of Parquet files."""
        self._columns = list(columns)
        self._reader.use_columns(columns)

    async def start(self, positions: Positions | None, identity: str = "") -> dict[str, int]:
        """Finds the files and the place to read from, and begins to read ahead. See `Source.start`."""
        position = None
        if positions:
            files, _ = list_files(self._settings.paths)
            # Files follow one another: the last in order is the one that was being read.
            position = max(
                positions.items(), key=lambda item: files.index(item[0]) if item[0] in files else -1
            )
        try:
            place = await asyncio.to_thread(self._reader.begin, position)
        except OSError as error:
            raise SourceUnavailable(f"source.paths cannot be read: {error}") from error
        self._thread = threading.Thread(target=self._reader.run, args=(place,), name="files", daemon=True)
        self._thread.start()
        return {} if place is None else {place.path: place.row}

    async def read(self) -> Chunk | DataLoss | None:
        """The next chunk. See `Source.read`."""
        return await self._handover.get()

    async def read_span(self, partition: str, first: int, next: int) -> list[Chunk]:
        """Reads rows again. Spans in order are found without counting rows anew. See `Source.read_span`."""
        try:
            return await asyncio.to_thread(self._read_span, partition, first, next)
        except FileNotFoundError as error:
            raise PartitionMissing(
                f"{partition} is not there any more (looked for from {Path.cwd()})"
            ) from error
        except OSError as error:
            raise SourceUnavailable(f"{partition} cannot be read: {error}") from error

    async def committed(self, positions: Positions) -> None:
        """Nobody else wants to know."""

    def lag_records(self) -> dict[str, int]:
        """Empty: how many rows a file has is not known before it is read."""
        return {}

    async def close(self) -> None:
        """Stops reading and joins the thread. Safe to call twice."""
        self._reader.stop()
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.to_thread(thread.join)

    def _read_span(self, partition: str, first: int, stop: int) -> list[Chunk]:
        path = Path(partition)
        place = self._span_place
        byte = place[2] if place is not None and place[:2] == (partition, first) else None
        rows_max = max(1, min(stop - first, self._settings.chunk_records_max))
        chunks: list[Chunk] = []
        row = first
        with reading(file_codec_of(path), Place(partition, first, byte), self._columns, rows_max) as runs:
            while row < stop and (run := next(runs, None)) is not None:
                row = run.next_row
                self._span_place = (partition, row, run.next_byte) if row <= stop else None
                chunks.append(chunk_of(partition, _cut(run, stop)))
        if row < stop:
            raise OffsetOutOfRange(
                f"{partition} ends at row {row}: rows {first} to {stop} cannot be read again"
            )
        return chunks

    def _on_room(self) -> None:
        self._reader.on_room()


def _cut(run: FileRows, stop: int) -> FileRows:
    """The rows of a run before row `stop`."""
    if run.next_row <= stop:
        return run
    count = int((run.rows < stop).sum())
    return FileRows(run.first_row, stop, run.rows[:count], run.records[:count])
