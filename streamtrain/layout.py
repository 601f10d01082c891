"""How the arrays between the sparse and the dense half are laid out: which slot is which columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from streamtrain.errors import ConfigError
from streamtrain.samples.schema import BucketSlot, CrossSlot, DenseSlot, Schema, SequenceSlot, SparseSlot

__all__ = ["DenseColumns", "Layout", "PooledColumns", "Sequence"]


@dataclass(frozen=True, slots=True)
class PooledColumns:
    """Slot `name` fills columns `start` to `start + dim` of the pooled array, from `table`, by `pooling`."""

    name: str
    table: str
    pooling: str
    start: int
    dim: int


@dataclass(frozen=True, slots=True)
class Sequence:
    """Slot `name` reaches the model as `[B, length_max, dim]` vectors of `table` and a `[B, length_max]` mask.

    `shares` is the slot whose ids it shares, which a model may compare it with.
    """

    name: str
    table: str
    length_max: int
    dim: int
    shares: str | None = None


@dataclass(frozen=True, slots=True)
class DenseColumns:
    """Slot `name` fills columns `start` to `start + size` of the dense array."""

    name: str
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The shapes that cross the bridge, derived from the schema and the tables' dims alone."""

    pooled: tuple[PooledColumns, ...]
    pooled_width: int
    sequences: tuple[Sequence, ...]
    dense: tuple[DenseColumns, ...]
    dense_width: int
    labels: tuple[str, ...]

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
        pooled_width = dense_width = 0
        used: set[str] = set()
        for name, slot in schema.slots.items():
            if isinstance(slot, DenseSlot):
                dense.append(DenseColumns(name, dense_width, slot.size))
                dense_width += slot.size
                continue
            table = _table(schema, name, dims)
            used.add(table)
            if isinstance(slot, SequenceSlot) and slot.pooling == "none":
                sequences.append(Sequence(name, table, slot.length_max, dims[table], slot.shares))
            else:
                assert isinstance(slot, (SparseSlot, SequenceSlot, BucketSlot, CrossSlot))
                pooled.append(PooledColumns(name, table, slot.pooling, pooled_width, dims[table]))
                pooled_width += dims[table]
        if unused := sorted(set(dims) - used):
            raise ConfigError(
                f"tables.{unused[0]}: no slot uses this table; remove it or name it in a slot's `table`"
            )
        return Layout(
            tuple(pooled), pooled_width, tuple(sequences), tuple(dense), dense_width, tuple(schema.labels)
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
