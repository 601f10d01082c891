"""Arrow columns of any fitting type as the plain arrays that slots are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from streamtrain.errors import ConfigError
from streamtrain.samples.fields import Field
from streamtrain.samples.hashing import hash_ints, hash_strings

__all__ = ["Column", "Filled", "fits", "flags", "hash_values", "is_list", "read_column", "whole"]


@dataclass(frozen=True, slots=True)
class Column:
    """The values of one field for n rows; a row of a field that is no list has one value, or none where it is missing.

    Attributes:
      values: `[N]` int64 or float64, or an Arrow string array, without nulls.
      offsets: `[n + 1]` int64: row i has `values[offsets[i]:offsets[i + 1]]`.
      present: `[n]` bool, False where the row has no value or null; an empty list is present.
      null_rows: rows whose list holds a null, ascending.
      huge_rows: rows that hold an integer beyond 64 bits with sign, ascending.
    """

    values: NDArray[np.int64] | NDArray[np.float64] | pa.Array
    offsets: NDArray[np.int64]
    present: NDArray[np.bool_]
    null_rows: NDArray[np.int64]
    huge_rows: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """`[n]` int64, the number of values of each row."""
        return np.diff(self.offsets)

    def kept(self, rows: NDArray[np.bool_]) -> Column:
        """The column of some of the rows; their problems are not among them."""
        lengths = self.lengths
        elements = np.repeat(rows, lengths)
        values = self.values
        none = np.empty(0, np.int64)
        return Column(
            values[elements] if isinstance(values, np.ndarray) else values.filter(pa.array(elements)),
            _offsets(lengths[rows]),
            self.present[rows],
            none,
            none,
        )

    def rows_of(self, elements: NDArray[np.int64]) -> NDArray[np.int64]:
        """The distinct rows that hold the values at `elements`, ascending."""
        return np.unique(np.searchsorted(self.offsets, elements, side="right") - 1)


class Filled(NamedTuple):
    """What all columns of a table have alike in which every row has one value; see `Column`. Nobody may write to it."""

    offsets: NDArray[np.int64]
    present: NDArray[np.bool_]

    @staticmethod
    def of(size: int) -> Filled:
        return Filled(np.arange(size + 1), np.ones(size, np.bool_))


def read_column(table: pa.Table, field: Field, filled: Filled) -> Column:
    """The column of `field`, or one without any value where the table has none of that name.

    Args:
      table: of n rows.
      field: which of its columns.
      filled: of n rows.

    Raises:
      ConfigError: the column is of a type that does not fit the field.
    """
    indices = table.schema.get_all_field_indices(field.name)
    if len(indices) > 1:
        raise ConfigError(
            f"field {field.name!r}: {len(indices)} columns have this name; name the columns apart"
        )
    column = table.column(indices[0]) if indices else None
    if column is None or pa.types.is_null(column.type):
        nothing = np.zeros(table.num_rows + 1, np.int64)
        return _column(pa.nulls(0, field.value_type), nothing, np.zeros(table.num_rows, np.bool_))
    array = whole(column)
    if not fits(array.type, field):
        raise _unfit(field, array.type)
    if not field.many:
        # Fitted first: a dictionary may hold a null among its values.
        array = _fit(array, field)
        if not array.null_count:
            return _column(array, *filled)
        present = flags(array.is_valid())
        return _column(array.drop_null(), _offsets(present.astype(np.int64)), present)
    lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    present = flags(array.is_valid()) if array.null_count else filled.present
    return _column(_fit(array.flatten(), field), _offsets(lengths), present)


def hash_values(values: NDArray[np.int64] | pa.Array, namespace: str) -> NDArray[np.uint64]:
    """The feature ids of a column's values, `[N]` uint64."""
    if isinstance(values, np.ndarray):
        return hash_ints(values, namespace)
    if len(values) == 0:
        return np.empty(0, np.uint64)
    width = np.int64 if pa.types.is_large_string(values.type) else np.int32
    _, offsets, data = values.buffers()
    bounds: NDArray[Any] = np.frombuffer(offsets, width)[values.offset : values.offset + len(values) + 1]
    return hash_strings(np.frombuffer(data or b"", np.uint8), bounds, namespace)


def _column(values: pa.Array, offsets: NDArray[np.int64], present: NDArray[np.bool_]) -> Column:
    nulls = np.flatnonzero(flags(values.is_null())) if values.null_count else np.empty(0, np.int64)
    huge = np.empty(0, np.int64)
    if pa.types.is_unsigned_integer(values.type):
        huge = np.flatnonzero(flags(pc.greater(values, pa.scalar(2**63 - 1, pa.uint64())).fill_null(False)))
        values = values.cast(pa.int64(), safe=False)
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        plain = values.fill_null("") if len(nulls) else values
    else:
        plain = (values.fill_null(0) if len(nulls) else values).to_numpy(zero_copy_only=False)
    column = Column(plain, offsets, present, nulls, huge)
    if len(nulls) or len(huge):
        return Column(plain, offsets, present, column.rows_of(nulls), column.rows_of(huge))
    return column


def _fit(values: pa.Array, field: Field) -> pa.Array:
    """`values` as int64, uint64 (which `_column` narrows), float64, string or large_string; nulls stay."""
    type_ = values.type
    if pa.types.is_dictionary(type_):
        return _fit(values.dictionary_decode(), field)
    if pa.types.is_null(type_):
        return values.cast(field.value_type)
    if field.type == "string":
        return values
    if field.type == "number":
        return values.cast(pa.float64(), safe=False)
    if pa.types.is_timestamp(type_) or pa.types.is_date(type_):
        zone = type_.tz if pa.types.is_timestamp(type_) else None
        return values.cast(pa.timestamp("ms", zone), safe=False).cast(pa.int64())
    return values if type_ in (pa.int64(), pa.uint64()) else values.cast(pa.int64())


def fits(found: pa.DataType, field: Field) -> bool:
    """Whether a column of a type can be read as a field."""
    if field.many != is_list(found):
        return pa.types.is_null(found)
    value = found.value_type if field.many else found
    if pa.types.is_dictionary(value):
        value = value.value_type
    if pa.types.is_null(value):
        return True
    if field.type == "string":
        return bool(pa.types.is_string(value) or pa.types.is_large_string(value))
    if pa.types.is_integer(value) or pa.types.is_boolean(value):
        return True
    if field.type == "number":
        return bool(pa.types.is_floating(value) or pa.types.is_decimal(value))
    return field.type == "time" and bool(pa.types.is_timestamp(value) or pa.types.is_date(value))


def _unfit(field: Field, found: pa.DataType) -> ConfigError:
    if field.many != is_list(found):
        remedy = "a slot with many = false reads one value, many = true or a sequence slot reads a list"
    elif pa.types.is_floating(found):
        remedy = "a float is no feature id: use a slot of kind bucket or dense, or name another field"
    else:
        remedy = f"change the type in [{field.used_by}], or name another field"
    return ConfigError(
        f"field {field.name!r}: the column holds {found}, but {field.used_by} reads {field}; {remedy}"
    )


def is_list(type_: pa.DataType) -> bool:
    """Whether it is one of Arrow's types of lists."""
    return pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)


def whole(column: pa.ChunkedArray) -> pa.Array:
    """The column in one piece."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def flags(array: pa.Array) -> NDArray[np.bool_]:
    """`[n]` bool of an Arrow array without nulls."""
    return array.to_numpy(zero_copy_only=False)
