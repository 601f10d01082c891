"""What each shard gets of an epoch, cut into calls of bounded size."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from streamtrain.errors import StoreRefused
from streamtrain.log.record import EpochRecord, TableRows
from streamtrain.store.packing import (
    BYTES_MAX,
    ID_BYTES,
    ROWS_MAX,
    TICKET_BYTES,
    Grouped,
    group,
    pack_rows,
    pack_tickets,
    value_dtype,
)
from streamtrain.store.store import StoreDescription

__all__ = ["Part", "Shares", "check_tables", "plan"]


Kind = tuple[str, str]
"""A table, and `rows` or `tombstones`."""

Part = dict[Kind, slice]
"""What one call writes: which of the shard's rows and tombstones of which table."""


def plan(sizes: Mapping[Kind, tuple[int, int]], rows_max: int, bytes_max: int) -> list[Part]:
    """Cuts a shard's share of an epoch into calls, one or more, each within both bounds.

    Args:
      sizes: by kind, how many, and the packed bytes of one.
      rows_max: rows and tombstones a call.
      bytes_max: packed bytes a call; a single row larger than that is a call of its own.
    """
    parts: list[Part] = [{}]
    rows_left, bytes_left = rows_max, bytes_max
    for kind, (count, row_bytes) in sizes.items():
        start = 0
        while start < count:
            take = min(count - start, rows_left, bytes_left // row_bytes)
            if take <= 0 and parts[-1]:
                parts.append({})
                rows_left, bytes_left = rows_max, bytes_max
                continue
            take = max(take, 1)
            parts[-1][kind] = slice(start, start + take)
            start, rows_left, bytes_left = start + take, rows_left - take, bytes_left - take * row_bytes
    return parts


class Shares:
    """The rows and tombstones of a record, by shard.

    Rows are packed when they are asked for, so that a base in flight costs some calls' bytes and not a second copy.

    Args:
      record: an epoch or a base.
      description: of the store.

    Raises:
      StoreRefused: the record's tables are not the description's.
    """

    def __init__(self, record: EpochRecord, description: StoreDescription) -> None:
        self.epoch = record.epoch
        self._tables: dict[str, TableRows] = {}
        for name in sorted(description.tables):
            self._tables[name] = record.tables.get(name) or TableRows.empty(*description.tables[name])
        check_tables(record, description)
        self._values = {name: value_dtype(*shape).itemsize for name, shape in description.tables.items()}
        self._scanned = description.scanned
        self._grouped: dict[Kind, Grouped] = {}
        for name, rows in self._tables.items():
            self._grouped[name, "rows"] = group(rows.ids, description.shards)
            self._grouped[name, "tombstones"] = group(rows.tombstones, description.shards)

    def parts(self, shard: int) -> list[Part]:
        """The calls that bring `shard` its share, one or more."""
        sizes: dict[Kind, tuple[int, int]] = {}
        for kind, grouped in self._grouped.items():
            value_bytes = self._values[kind[0]] if kind[1] == "rows" else 0
            ticket_bytes = TICKET_BYTES if kind[0] in self._scanned else 0
            sizes[kind] = (len(grouped.shard(shard)), ID_BYTES + value_bytes + ticket_bytes)
        return plan(sizes, ROWS_MAX, BYTES_MAX)

    def arguments(self, shard: int, part: Part) -> list[int | bytes]:
        """What `apply.lua` takes for each table, in the order of their names: value bytes, rows, tombstones,
        tickets of both.

        May read from disk, where the record lies in a mapped file.
        """
        arguments: list[int | bytes] = []
        for name, rows in self._tables.items():
            kept, gone = (
                self._grouped[name, what].shard(shard)[part.get((name, what), slice(0))]
                for what in ("rows", "tombstones")
            )
            removed = rows.tombstones[gone].astype("<u8", copy=False).tobytes()
            tickets = b"-"
            if name in self._scanned:
                tickets = pack_tickets(np.concatenate([rows.ids[kept], rows.tombstones[gone]]))
            arguments += [self._values[name], pack_rows(rows, kept), removed, tickets]
        return arguments


def check_tables(record: EpochRecord, description: StoreDescription) -> None:
    """Raises StoreRefused where the record's tables are not the description's."""
    for name, rows in record.tables.items():
        shape = (rows.weights.shape[1], rows.slots.shape[1])
        if description.tables.get(name) != shape:
            raise StoreRefused(
                f"epoch {record.epoch} has rows of table {name!r} with {shape[0]} weights and {shape[1]} optimizer floats, "
                f"but the store was opened for {dict(description.tables)}; the log and this configuration do not belong together"
            )
