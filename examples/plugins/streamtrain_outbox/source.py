"""Reads samples from a table of an SQLite database: the consumer plug-in `sqlite`."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from streamtrain.errors import OffsetOutOfRange, PartitionMissing, SourceUnavailable
from streamtrain.sources import TIME_UNKNOWN, Chunk, Positions, SourceSettings

__all__ = ["SqliteSettings", "SqliteSource"]

Row = tuple[int, str | bytes | None, int | None]


class SqliteSettings(SourceSettings):
    """A table that applications append to in the transaction that makes the fact true (an outbox).

    It has the columns `id INTEGER PRIMARY KEY AUTOINCREMENT`, `record` (text or bytes) and `time_ms`.
    """

    kind: Literal["sqlite"]
    """Reads a table of an SQLite database."""
    path: str = Field(min_length=1)
    """The database file; it is only read."""
    table: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """The table. It is the name of the source's one partition."""
    chunk_records_max: int = Field(default=1024, ge=1, le=65_536)
    """Rows that are read together at most."""
    poll_interval_s: float = Field(default=0.1, gt=0, le=60)
    """How often to look for more at the end of the table."""


class SqliteSource:
    """Reads rows in the order of their ids, which are the offsets.

    SQLite has one writer at a time, so ids become visible in order, and a row that is passed over never appears later. A
    database with several writers would need more than an id here. Nothing is read ahead: what is not asked for stays in
    the table. Learned rows may be removed; that rows were removed before they were learned is not noticed, because ids
    that a transaction took and gave up are missing as well.
    """

    Settings = SqliteSettings
    sequential = False
    identity = ""

    def __init__(self, settings: SqliteSettings, *, until_end: bool = False) -> None:
        self._settings, self._until_end = settings, until_end
        self._next = self._newest = 0

    def use_columns(self, columns: Sequence[str]) -> None:
        """Rows hold whole records, which the codec takes apart."""

    async def start(self, positions: Positions | None, identity: str = "") -> dict[str, int]:
        """Looks where the table begins and ends. See `Source.start`."""
        table = self._settings.table
        if positions and table not in positions:
            raise PartitionMissing(
                f"the log has read {', '.join(positions)}, and source.table is {table}; set it back, "
                "or give the model that reads it a log.path of its own"
            )
        first, self._newest = await asyncio.to_thread(self._bounds)
        self._next = positions[table] if positions else first
        if self._next > self._newest + 1:
            raise OffsetOutOfRange(
                f"{table}: the log goes on at id {self._next}, but the table of {self._settings.path} has given out ids "
                f"up to {self._newest} only: restore it, or give the new one a log.path of its own"
            )
        return {table: self._next}

    async def read(self) -> Chunk | None:
        """The next rows. See `Source.read`."""
        while True:
            rows = await asyncio.to_thread(self._rows, self._next, None)
            if rows:
                # No await from here on, so that a cancelled call has moved nothing.
                chunk = _chunk(self._settings.table, self._next, rows[-1][0] + 1, rows)
                self._next, self._newest = chunk.next, max(self._newest, chunk.next - 1)
                return chunk
            if self._until_end:
                return None
            await asyncio.sleep(self._settings.poll_interval_s)

    async def read_span(self, partition: str, first: int, next: int) -> list[Chunk]:
        """Reads rows again. See `Source.read_span`."""
        chunks: list[Chunk] = []
        while first < next:
            rows = await asyncio.to_thread(self._rows, first, next)
            if not rows:
                raise OffsetOutOfRange(
                    f"{partition}: rows {first} to {next - 1} are not in the table any more"
                )
            chunks.append(_chunk(partition, first, rows[-1][0] + 1, rows))
            first = chunks[-1].next
        return chunks

    async def committed(self, positions: Positions) -> None:
        """Nobody else wants to know."""

    def lag_records(self) -> dict[str, int]:
        """Up to the newest id that was seen."""
        return {self._settings.table: max(0, self._newest + 1 - self._next)}

    async def close(self) -> None:
        """Nothing is held between two calls."""

    def _rows(self, first: int, stop: int | None) -> list[Row]:
        """Rows from id `first` on, before `stop`. Blocks."""
        query = f"SELECT id, record, time_ms FROM {self._settings.table} WHERE id >= ?"
        query += "" if stop is None else f" AND id < {stop:d}"
        return self._ask(f"{query} ORDER BY id LIMIT ?", (first, self._settings.chunk_records_max))

    def _bounds(self) -> tuple[int, int]:
        """The first id to read, and the last that was given out, be its row there or not. Blocks."""
        [(first,)] = self._ask(f"SELECT coalesce(min(id), 0) FROM {self._settings.table}", ())
        last = self._ask("SELECT seq FROM sqlite_sequence WHERE name = ?", (self._settings.table,))
        return first, last[0][0] if last else 0

    def _ask(self, query: str, values: tuple[int | str, ...]) -> list[Any]:
        uri = f"{Path(self._settings.path).resolve().as_uri()}?mode=ro"
        try:
            with closing(sqlite3.connect(uri, uri=True)) as database:
                return database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise SourceUnavailable(
                f"{self._settings.table} of {self._settings.path} cannot be read: {error}"
            ) from error


def _chunk(partition: str, first: int, next: int, rows: Sequence[Row]) -> Chunk:
    return Chunk(
        partition,
        first,
        next,
        np.array([row[0] for row in rows], np.int64),
        np.array([TIME_UNKNOWN if row[2] is None else row[2] for row in rows], np.int64),
        [record.encode() if isinstance(record := row[1], str) else record for row in rows],
    )
