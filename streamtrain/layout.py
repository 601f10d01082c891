"""How the arrays between the sparse and the dense half are laid out: which slot is which columns.

Where samples are grouped there is an array a level: what a node holds crosses once, however many samples are under it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from streamtrain.errors import ConfigError
from streamtrain.samples.schema import (
    LEAF,
    BucketSlot,
    CrossSlot,
    DenseSlot,
    Schema,
    SequenceSlot,
    SparseSlot,
)

__all__ = ["FLAT", "DenseColumns", "Layout", "PooledColumns", "Sequence", "Shared"]


@dataclass(frozen=True, slots=True)
class PooledColumns:
    """Slot `name` fills columns `start` to `start + dim` of its level's pooled array, from `table`, by `pooling`."""

    name: str
    table: str
    pooling: str
    start: int
    dim: int
    level: str = LEAF


@dataclass(frozen=True, slots=True)
class Sequence:
    """Slot `name` reaches the model as `[B, length_max, dim]` vectors of `table` and a `[B, length_max]` mask.

    `shares` is the slot whose ids it shares, which a model may compare it with. Above the leaves' level, its arrays have as
    many rows as that level has nodes.
    """

    name: str
    table: str
    length_max: int
    dim: int
    shares: str | None = None
    level: str = LEAF


@dataclass(frozen=True, slots=True)
class DenseColumns:
    """Slot `name` fills columns `start` to `start + size` of the dense array."""

    name: str
    start: int
    size: int


class Shared(NamedTuple):
    """What crosses the bridge of the levels above the leaves, the root's first; one array a level in each.

    Attributes:
      pooled: `[P_l, W_l]` float32, the pooled vectors of the level's slots side by side; of padding nodes zeros.
      parents: `[P_(l + 1)]` int32, ascending: the node of this level that each row of the next level hangs under, the
        leaves after the last. A padding row hangs under any node.
    """

    pooled: tuple[Any, ...] = ()
    parents: tuple[Any, ...] = ()


FLAT = Shared()
"""Of samples that have no levels above them."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The shapes that cross the bridge, derived from the schema and the tables' dims alone.

    Attributes:
      pooled: the pooled slots, in the schema's order.
      pooled_width: W, columns of all of them.
      sequences: the slots whose vectors reach the model one by one, in the schema's order.
      dense: the slots of floats, in the schema's order.
      dense_width: F, columns of all of them.
      labels: in the schema's order.
      levels: those above the leaves that any pooled slot or sequence belongs to, the root's first.
    """

    pooled: tuple[PooledColumns, ...]
    pooled_width: int
    sequences: tuple[Sequence, ...]
    dense: tuple[DenseColumns, ...]
    dense_width: int
    labels: tuple[str, ...]
    levels: tuple[str, ...] = ()

    def width(self, level: str) -> int:
        """W_l, the columns of a level's pooled array."""
        return sum(columns.dim for columns in self.pooled if columns.level == level)

    @staticmethod
    def of(schema: Schema, dims: Mapping[str, int]) -> Layout:
        """Lays out the slots in the schema's order.

        Args:
          schema: the samples.
          dims: by table, its dim.

        Raises:
          ConfigError: a slot names no table that there is, or a table is used by no slot.
        """
        pooled: list[PooledColumns] = []
        sequences: list[Sequence] = []
        dense: list[DenseColumns] = []
        widths = {LEAF: 0}
        dense_width = 0
        used: set[str] = set()
        for name, slot in schema.slots.items():
            if isinstance(slot, DenseSlot):
                dense.append(DenseColumns(name, dense_width, slot.size))
                dense_width += slot.size
                continue
            table = _table(schema, name, dims)
            used.add(table)
            level = schema.level(name)
            start = widths.setdefault(level, 0)
            if isinstance(slot, SequenceSlot) and slot.pooling == "none":
                sequences.append(Sequence(name, table, slot.length_max, dims[table], slot.shares, level))
            else:
                assert isinstance(slot, (SparseSlot, SequenceSlot, BucketSlot, CrossSlot))
                pooled.append(PooledColumns(name, table, slot.pooling, start, dims[table], level))
                widths[level] += dims[table]
        if unused := sorted(set(dims) - used):
            raise ConfigError(
                f"tables.{unused[0]}: no slot uses this table; remove it or name it in a slot's `table`"
            )
        return Layout(
            tuple(pooled),
            sum(widths.values()),
            tuple(sequences),
            tuple(dense),
            dense_width,
            tuple(schema.labels),
            tuple(level.name for level in schema.levels if level.name in widths),
        )


def _table(schema: Schema, name: str, dims: Mapping[str, int]) -> str:
    table = schema.table(name)
    if table is None and len(dims) == 1:
        return next(iter(dims))
    if table is None:
        raise ConfigError(
            f"schema.slots.{name}: there are several tables ({', '.join(dims)}); say which with `table`"
        )
    if table not in dims:
        raise ConfigError(
            f"schema.slots.{name}.table: there is no [tables.{table}]; there are: {', '.join(dims)}"
        )
    return table
