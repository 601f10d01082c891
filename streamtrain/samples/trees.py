"""From a table of trees to one table a level: what each level holds, and which node of the level above it hangs under."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from streamtrain.errors import BadSample, ConfigError
from streamtrain.samples.arrays import flags, is_list, whole
from streamtrain.samples.problems import Problems
from streamtrain.samples.schema import LEAF, Level

__all__ = ["LevelRows", "no_children", "unfolded"]


@dataclass(frozen=True, slots=True)
class LevelRows:
    """The nodes of one level, those of a parent side by side, in the order of the parents.

    Attributes:
      name: the level; LEAF: the rows are the samples.
      table: n rows.
      parents: `[n]` int64, the row of the level above that each hangs under; of the root's level, the record's index.
    """

    name: str
    table: pa.Table
    parents: NDArray[np.int64]


def no_children(field: str) -> BadSample:
    """What is wrong with a tree of which a node has no list of children, or a null among them."""
    return BadSample("missing", "a node has no list of its children here, or a null among them", field=field)


def unfolded(
    table: pa.Table, records: NDArray[np.int64], levels: Sequence[Level], broken: Problems
) -> list[LevelRows]:
    """The levels of a table, the root's first, the samples last.

    Args:
      table: rows of the root's level.
      records: `[n]` int64, the record of each row, ascending.
      levels: those above the samples.
      broken: of the records; told of those whose trees have no shape: without a list of children, or with a null there.

    Raises:
      ConfigError: a column of children is missing, or holds something else than lists of structs.
    """
    found: list[LevelRows] = []
    parents, record_of = records, records
    for level in levels:
        found.append(LevelRows(level.name, table, parents))
        nodes = _children(table, level)
        shapeless = nodes.is_null() if nodes.null_count else None
        error = no_children(level.children)
        if shapeless is not None:
            broken.flag(np.unique(record_of[flags(shapeless)]), error.reason, level.children, error.detail)
        lengths = pc.list_value_length(nodes).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        parents = np.repeat(np.arange(len(lengths)), lengths)
        record_of = record_of[parents]
        below = nodes.flatten()
        if below.null_count:
            broken.flag(
                np.unique(record_of[flags(below.is_null())]), error.reason, level.children, error.detail
            )
        table = pa.Table.from_arrays(below.flatten(), names=[field.name for field in below.type])
        if not below.type.num_fields:
            table = pa.table({"": pa.nulls(len(below))})
    found.append(LevelRows(LEAF, table, parents))
    return found


def _children(table: pa.Table, level: Level) -> pa.Array:
    """The lists of children of a level's nodes.

    Raises: as `unfolded`.
    """
    name = level.children
    indices = table.schema.get_all_field_indices(name)
    if len(indices) != 1:
        there = "there is no column" if not indices else f"there are {len(indices)} columns"
        raise ConfigError(f"{there} {name!r}, which schema.levels names as the children of {level.name!r}")
    column = table.column(indices[0])
    array = column if isinstance(column, pa.Array) else whole(column)
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), pa.list_(pa.struct([])))
    if not is_list(array.type) or not pa.types.is_struct(array.type.value_type):
        raise ConfigError(
            f"field {name!r}: the column holds {array.type}, but schema.levels reads the children of {level.name!r} there, "
            "which is a list of structs"
        )
    return array
