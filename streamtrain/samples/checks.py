"""What is wrong with the rows of one level, found before anything is made of them; vectorised over the rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from streamtrain.samples.arrays import Column, Filled, read_column
from streamtrain.samples.fields import Field
from streamtrain.samples.problems import Problems
from streamtrain.samples.schema import BucketSlot, CrossSlot, DenseSlot, Schema, SequenceSlot, SparseSlot
from streamtrain.samples.trees import LevelRows
from streamtrain.sources import TIME_UNKNOWN

__all__ = ["EVENT_TIME_MS_MAX", "LevelColumns", "check_leaves", "check_slots", "event_times"]

EVENT_TIME_MS_MAX = 253_402_300_799_999
"""The end of the year 9999. A time in micro- or nanoseconds lies beyond it and would spoil the watermark for good."""


@dataclass(slots=True)
class LevelColumns:
    """The columns of one level, read as they are asked for, and what is wrong with its rows.

    Attributes:
      rows: the level.
      fields: by name, of the whole schema.
      problems: of the level's rows.
      lengths: by slot that a cross is of, `[n]` int64, how many ids each row has.
    """

    rows: LevelRows
    fields: Mapping[str, Field]
    problems: Problems
    lengths: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    _columns: dict[str, Column] = field(default_factory=dict)
    _floats: dict[str, Column] = field(default_factory=dict)
    _filled: Filled | None = None

    @property
    def size(self) -> int:
        return len(self.rows.parents)

    def column(self, name: str) -> Column:
        """A field."""
        if name not in self._columns:
            self._filled = self._filled or Filled.of(self.size)
            column = read_column(self.rows.table, self.fields[name], self._filled)
            self.problems.flag(column.null_rows, "missing", name, "the list holds a null")
            self.problems.flag(
                column.huge_rows, "type", name, "an integer is larger than 9223372036854775807"
            )
            self._columns[name] = column
        return self._columns[name]

    def floats(self, name: str) -> Column:
        """A field as float32, finite in all rows that are not bad."""
        if name not in self._floats:
            column = self.column(name)
            with np.errstate(over="ignore"):
                column = replace(column, values=column.values.astype(np.float32))
            self.check_finite(column, name, "a number is not finite as a 32-bit float")
            self._floats[name] = column
        return self._floats[name]

    def check_finite(self, column: Column, name: str, detail: str) -> None:
        finite = np.isfinite(column.values)
        if not finite.all():
            self.problems.flag(column.rows_of(np.flatnonzero(~finite)), "non_finite", name, detail)

    def scalars(self, name: str, default: float) -> NDArray[np.float32]:
        """`[n]` float32, `default` where the field is missing."""
        column = self.floats(name)
        if len(column.values) == len(column.present):
            return np.asarray(column.values, np.float32)
        filled = np.full(len(column.present), default, np.float32)
        filled[column.present] = column.values
        return filled

    def keep(self, rows: NDArray[np.bool_]) -> None:
        """Leaves some of the rows, none of them bad."""
        self._columns = {name: column.kept(rows) for name, column in self._columns.items()}
        self._floats = {name: column.kept(rows) for name, column in self._floats.items()}
        self.rows = replace(self.rows, parents=self.rows.parents[rows])


def check_leaves(
    level: LevelColumns, schema: Schema, times_ms: NDArray[np.int64], *, labels_required: bool
) -> None:
    """Labels, weights and event times."""
    for name in schema.labels:
        _check_label(level, name, labels_required)
    if schema.weight is not None:
        weights = level.scalars(schema.weight, 1.0)
        negative = np.flatnonzero(weights < 0)
        level.problems.flag(
            negative,
            "range",
            schema.weight,
            lambda row: f"the weight is {weights[row]:g}; it must be at least 0",
        )
    if schema.event_time is not None:
        _check_event_time(level, schema.event_time, schema.event_time_ahead_max_s, times_ms)


def _check_label(level: LevelColumns, name: str, required: bool) -> None:
    labels = level.scalars(name, 0.0)
    if required:
        absent = np.flatnonzero(~level.column(name).present)
        level.problems.flag(absent, "missing", name, "the label is missing")
    outside = np.flatnonzero(~((labels >= 0) & (labels <= 1)))
    level.problems.flag(
        outside, "label", name, lambda row: f"the label is {labels[row]:g}; it must be from 0 to 1"
    )


def event_times(level: LevelColumns, name: str | None, times_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    """`[n]` int64, the record's own time where the field is missing, TIME_UNKNOWN where there is neither."""
    found = np.where(times_ms < 0, TIME_UNKNOWN, times_ms)
    if name is not None:
        column = level.column(name)
        found[column.present] = column.values
    return found


def _check_event_time(level: LevelColumns, name: str, ahead_max_s: int, times_ms: NDArray[np.int64]) -> None:
    found = event_times(level, name, times_ms)
    outside = level.column(name).present & ((found < 0) | (found > EVENT_TIME_MS_MAX))
    level.problems.flag(
        np.flatnonzero(outside),
        "range",
        name,
        lambda row: (
            f"the event time is {found[row]}; it must be milliseconds since 1970, before the year 10000"
        ),
    )
    # Compared with the record's time, not with a clock: a replay must refuse the same records.
    ahead = ~outside & (times_ms >= 0) & (found - times_ms > ahead_max_s * 1000)
    level.problems.flag(
        np.flatnonzero(ahead),
        "range",
        name,
        lambda row: (
            f"the event time is {(found[row] - times_ms[row]) / 1000:g} s after the record's own time; "
            f"schema.event_time_ahead_max_s allows {ahead_max_s}. The producer's clock or unit is wrong"
        ),
    )


def check_slots(
    level: LevelColumns,
    schema: Schema,
    names: list[str],
    crossed: Collection[str],
    above: Mapping[str, tuple[LevelColumns, NDArray[np.int64]]],
) -> None:
    """The slots of a level.

    Args:
      names: the slots, in the schema's order.
      crossed: all slots that a cross is of.
      above: by slot of a level above that a cross is of: its level, and the row there of each row here.
    """
    for name in names:
        slot = schema.slots[name]
        if isinstance(slot, DenseSlot):
            _check_dense(level, slot.field or name, slot.size)
        elif isinstance(slot, CrossSlot):
            _check_cross(level, name, slot, above)
        elif isinstance(slot, BucketSlot):
            # The bucket is found in float64, so that a boundary means what the TOML says.
            column = level.column(slot.field or name)
            level.check_finite(column, slot.field or name, "the number is not finite")
            if name in crossed:
                level.lengths[name] = column.lengths
        elif isinstance(slot, SequenceSlot):
            level.column(slot.field or name)
        else:
            _check_sparse(level, slot.field or name, slot)
            if name in crossed:
                level.lengths[name] = level.column(slot.field or name).lengths


def _check_dense(level: LevelColumns, name: str, size: int) -> None:
    column = level.floats(name)
    if size > 1:
        lengths = column.lengths
        level.problems.flag(
            np.flatnonzero(column.present & (lengths != size)),
            "length",
            name,
            lambda row: f"the list has {lengths[row]} numbers; the slot's size is {size}",
        )


def _check_sparse(level: LevelColumns, field: str, slot: SparseSlot) -> None:
    column = level.column(field)
    if slot.weights is not None:
        want, have = column.lengths, level.floats(slot.weights).lengths
        level.problems.flag(
            np.flatnonzero(have != want),
            "length",
            slot.weights,
            lambda row: f"the list has {have[row]} weights for the {want[row]} ids of field {field!r}",
        )


def _check_cross(
    level: LevelColumns,
    name: str,
    slot: CrossSlot,
    above: Mapping[str, tuple[LevelColumns, NDArray[np.int64]]],
) -> None:
    counts = np.ones(level.size, np.int64)
    for part in slot.of:
        if part in level.lengths:
            lengths = level.lengths[part]
        else:
            other, rows = above[part]
            lengths = other.lengths[part][rows]
        # Held just above the bound, so that the product of four long lists stays within 64 bits.
        counts = np.minimum(counts, slot.combinations_max + 1) * lengths
    many = np.flatnonzero(counts > slot.combinations_max)
    level.problems.flag(
        many,
        "too_large",
        name,
        f"the cross has more than combinations_max = {slot.combinations_max} combinations",
    )
    counts[many] = 0
    level.lengths[name] = counts
