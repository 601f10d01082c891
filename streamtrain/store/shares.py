"""What each shard gets of an epoch, cut into calls of bounded size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from streamtrain.errors import StoreRefused
from streamtrain.log.record import EpochRecord, TableRows
from streamtrain.store.packing import BYTES_MAX, ID_BYTES, ROWS_MAX, group, pack_rows, value_dtype
from streamtrain.store.store import StoreDescription

__all__ = ["Part", "Shares", "plan"]


@dataclass(frozen=True, slots=True)
class Part:
    """What one call writes: by table, which of the shard's rows and which of its tombstones, as slices."""

    rows: Mapping[str, slice]
    tombstones: Mapping[str, slice]


def plan(
    sizes: Mapping[str, tuple[int, int, int]], *, rows_max: int = ROWS_MAX, bytes_max: int = BYTES_MAX
) -> list[Part]:
    """Cuts a shard's share of an epoch into calls, one or more, each within both bounds.

    Args:
      sizes: by table, how many rows, how many tombstones, and the bytes of a value.
      rows_max: rows and tombstones a call.
      bytes_max: packed bytes a call; a single row larger than that is a call of its own.
    """
    parts: list[Part] = []
    rows: dict[str, slice] = {}
    tombstones: dict[str, slice] = {}
    rows_left, bytes_left = rows_max, bytes_max
    for table, (row_count, tombstone_count, value_bytes) in sizes.items():
        for into, count, cost in (
            ("rows", row_count, ID_BYTES + value_bytes),
            ("tombstones", tombstone_count, ID_BYTES),
        ):
            start = 0
            while start < count:
                take = min(count - start, rows_left, bytes_left // cost)
                if take <= 0 and (rows or tombstones):
                    parts.append(Part(rows, tombstones))
                    rows, tombstones, rows_left, bytes_left = {}, {}, rows_max, bytes_max
                    continue
                take = max(take, 1)
                (rows if into == "rows" else tombstones)[table] = slice(start, start + take)
                start, rows_left, bytes_left = start + take, rows_left - take, bytes_left - take * cost
    return [*parts, Part(rows, tombstones)] if rows or tombstones or not parts else parts


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
        _check(record, description)
        self._values = {name: value_dtype(*shape).itemsize for name, shape in description.tables.items()}
        self._rows = {name: group(rows.ids, description.shards) for name, rows in self._tables.items()}
        self._tombstones = {
            name: group(rows.tombstones, description.shards) for name, rows in self._tables.items()
        }

    def parts(self, shard: int) -> list[Part]:
        """The calls that bring `shard` its share, one or more."""
        return plan(
            {
                name: (
                    len(self._rows[name].shard(shard)),
                    len(self._tombstones[name].shard(shard)),
                    self._values[name],
                )
                for name in self._tables
            }
        )

    def arguments(self, shard: int, part: Part) -> list[int | bytes]:
        """What `apply.lua` takes for each table, in the order of their names: value bytes, rows, tombstones."""
        arguments: list[int | bytes] = []
        for name, rows in self._tables.items():
            index = self._rows[name].shard(shard)[part.rows.get(name, slice(0))]
            gone = self._tombstones[name].shard(shard)[part.tombstones.get(name, slice(0))]
            removed = rows.tombstones[gone].astype("<u8", copy=False).tobytes()
            arguments += [self._values[name], pack_rows(rows, index), removed]
        return arguments


def _check(record: EpochRecord, description: StoreDescription) -> None:
    for name, rows in record.tables.items():
        shape = (rows.weights.shape[1], rows.slots.shape[1])
        if description.tables.get(name) != shape:
            raise StoreRefused(
                f"epoch {record.epoch} has rows of table {name!r} with {shape[0]} weights and {shape[1]} optimizer floats, "
                f"but the store was opened for {dict(description.tables)}; the log and this configuration do not belong together"
            )
