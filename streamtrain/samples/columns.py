"""From the columns of a table to samples: checks, feature ids, buckets, crosses; vectorised over the rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streamtrain.errors import ConfigError
from streamtrain.samples.arrays import Column, hash_values, read_column
from streamtrain.samples.batch import Ragged, SampleBatch
from streamtrain.samples.fields import fields_of
from streamtrain.samples.hashing import hash_crosses, hash_ints
from streamtrain.samples.problems import BadRow, Problems
from streamtrain.samples.schema import BucketSlot, CrossSlot, DenseSlot, Schema, SequenceSlot, SparseSlot
from streamtrain.sources import TIME_UNKNOWN

__all__ = ["EVENT_TIME_MS_MAX", "SampleColumns"]

EVENT_TIME_MS_MAX = 253_402_300_799_999
"""The end of the year 9999. A time in micro- or nanoseconds lies beyond it and would spoil the watermark for good."""


Observer = Callable[[str, NDArray[np.int64] | pa.Array, NDArray[np.uint64]], None]
"""Is told of a slot's namespace, the values that the good samples of a table have there, and their ids."""


class SampleColumns:
    """Reads samples of one schema out of Arrow tables. Holds no state between calls; threads may share it.

    Attributes:
      fields: by name, the fields that the schema reads.
      arrow_schema: the columns that it wants of a codec. `extract` takes other fitting types too, and does
        without columns that are not there.
      observer: told of the values of sparse and sequence slots as they are hashed, in the thread that reads; None
        where nobody wants to know. Set before threads share it.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.fields = fields_of(schema)
        self.arrow_schema = pa.schema([(name, field.arrow_type) for name, field in self.fields.items()])
        self.observer: Observer | None = None
        self._dense_width = sum(s.size for s in schema.slots.values() if isinstance(s, DenseSlot))
        self._bucket_ids = {
            name: hash_ints(np.arange(len(slot.boundaries) + 1), name)
            for name, slot in schema.slots.items()
            if isinstance(slot, BucketSlot)
        }

    def extract(
        self, table: pa.Table, times_ms: NDArray[np.int64], *, labels_required: bool = True
    ) -> tuple[SampleBatch, NDArray[np.int64], list[BadRow]]:
        """The samples of the rows that are good, and what is wrong with the others.

        Args:
          table: n rows.
          times_ms: `[n]` int64, when each record reached the source; below 0 where nobody knows: its event time then.
          labels_required: whether a row without a label is bad; else a missing label is 0.

        Returns:
          The samples, the rows they come from (`[B]` int64, ascending) and the bad rows, ascending.

        Raises:
          ConfigError: a column's type does not fit the schema, or a label's column is missing.
        """
        if labels_required and (
            absent := [name for name in self.schema.labels if name not in table.column_names]
        ):
            raise ConfigError(
                f"there is no column {absent[0]!r}, which schema.labels names; correct the name"
            )
        reading = _Reading(self, table, times_ms, labels_required)
        batch = reading.samples()
        if not reading.problems:
            reading.tell()
            return batch, np.arange(table.num_rows), []
        # Bad rows are rare, so the good ones are simply read again without them; no slot has to be filtered.
        good = np.flatnonzero(~reading.problems.bad)
        known = [name for name in self.fields if name in table.column_names]
        again = _Reading(self, table.select(known).take(good), times_ms[good], labels_required)
        batch = again.samples()
        assert not again.problems, again.problems.rows()
        again.tell()
        return batch, good, reading.problems.rows()


class _Reading:
    """One pass over one table. What it returns is of use only where it found no problem."""

    def __init__(
        self, columns: SampleColumns, table: pa.Table, times_ms: NDArray[np.int64], labels_required: bool
    ) -> None:
        self.columns, self.table, self.times_ms, self.labels_required = (
            columns,
            table,
            times_ms,
            labels_required,
        )
        self.problems = Problems(table.num_rows)
        self._read: dict[str, Column] = {}
        self._hashed: list[tuple[str, NDArray[np.int64] | pa.Array, NDArray[np.uint64]]] = []

    def tell(self) -> None:
        """Tells the observer, where there is one, what was hashed."""
        if (observer := self.columns.observer) is not None:
            for namespace, values, ids in self._hashed:
                observer(namespace, values, ids)

    def _hash(self, name: str, values: NDArray[np.int64] | pa.Array) -> NDArray[np.uint64]:
        namespace = self.columns.schema.namespace(name)
        ids = hash_values(values, namespace)
        self._hashed.append((namespace, values, ids))
        return ids

    def samples(self) -> SampleBatch:
        """All rows as samples, with `problems` filled."""
        size, schema = self.table.num_rows, self.columns.schema
        labels = np.empty((size, len(schema.labels)), np.float32)
        for i, name in enumerate(schema.labels):
            labels[:, i] = self._label(name)
        weights = self._weight(schema.weight)
        event_time_ms = self._event_time(schema.event_time)
        dense = np.zeros((size, self.columns._dense_width), np.float32)
        ids: dict[str, Ragged] = {}
        width = 0
        for name, slot in schema.slots.items():
            if isinstance(slot, DenseSlot):
                self._dense(slot.field or name, slot.size, dense[:, width : width + slot.size])
                width += slot.size
            elif isinstance(slot, CrossSlot):
                ids[name] = self._cross(name, slot, ids)
            elif isinstance(slot, BucketSlot):
                ids[name] = self._bucket(name, slot)
            elif isinstance(slot, SequenceSlot):
                ids[name] = self._sequence(name, slot)
            else:
                ids[name] = self._sparse(name, slot)
        record_time_ms = np.where(self.times_ms < 0, event_time_ms, self.times_ms)
        return SampleBatch(size, ids, dense, labels, weights, event_time_ms, record_time_ms)

    def _column(self, field: str) -> Column:
        if field not in self._read:
            column = read_column(self.table, self.columns.fields[field])
            self.problems.flag(column.null_rows, "missing", field, "the list holds a null")
            self.problems.flag(
                column.huge_rows, "type", field, "an integer is larger than 9223372036854775807"
            )
            self._read[field] = column
        return self._read[field]

    def _numbers(self, field: str) -> tuple[Column, NDArray[np.float32]]:
        """The column and its values as float32, finite in all rows that are not bad."""
        column = self._column(field)
        with np.errstate(over="ignore"):
            values = column.values.astype(np.float32)
        self._flag_non_finite(column, values, field, "a number is not finite as a 32-bit float")
        return column, values

    def _flag_non_finite(self, column: Column, values: NDArray[Any], field: str, detail: str) -> None:
        finite = np.isfinite(values)
        if not finite.all():
            self.problems.flag(column.rows_of(np.flatnonzero(~finite)), "non_finite", field, detail)

    def _scalars(self, field: str, default: float) -> NDArray[np.float32]:
        """`[n]` float32, `default` where the field is missing."""
        column, values = self._numbers(field)
        if len(values) == len(column.present):
            return values
        filled = np.full(len(column.present), default, np.float32)
        filled[column.present] = values
        return filled

    def _label(self, field: str) -> NDArray[np.float32]:
        labels = self._scalars(field, 0.0)
        if self.labels_required:
            self.problems.flag(
                np.flatnonzero(~self._column(field).present), "missing", field, "the label is missing"
            )
        outside = np.flatnonzero(~((labels >= 0) & (labels <= 1)))
        self.problems.flag(
            outside, "label", field, lambda row: f"the label is {labels[row]:g}; it must be from 0 to 1"
        )
        return labels

    def _weight(self, field: str | None) -> NDArray[np.float32]:
        if field is None:
            return np.ones(self.table.num_rows, np.float32)
        weights = self._scalars(field, 1.0)
        negative = np.flatnonzero(weights < 0)
        self.problems.flag(
            negative, "range", field, lambda row: f"the weight is {weights[row]:g}; it must be at least 0"
        )
        return weights

    def _event_time(self, field: str | None) -> NDArray[np.int64]:
        """`[n]` int64, the record's own time where the field is missing, TIME_UNKNOWN where there is neither."""
        event_time_ms = np.where(self.times_ms < 0, TIME_UNKNOWN, self.times_ms)
        if field is None:
            return event_time_ms
        column = self._column(field)
        event_time_ms[column.present] = column.values
        outside = column.present & ((event_time_ms < 0) | (event_time_ms > EVENT_TIME_MS_MAX))
        self.problems.flag(
            np.flatnonzero(outside),
            "range",
            field,
            lambda row: (
                f"the event time is {event_time_ms[row]}; it must be milliseconds since 1970, before the year 10000"
            ),
        )
        # Compared with the record's time, not with a clock: a replay must refuse the same records.
        ahead_max_s = self.columns.schema.event_time_ahead_max_s
        ahead = ~outside & (self.times_ms >= 0) & (event_time_ms - self.times_ms > ahead_max_s * 1000)
        self.problems.flag(
            np.flatnonzero(ahead),
            "range",
            field,
            lambda row: (
                f"the event time is {(event_time_ms[row] - self.times_ms[row]) / 1000:g} s after the record's own time; "
                f"schema.event_time_ahead_max_s allows {ahead_max_s}. The producer's clock or unit is wrong"
            ),
        )
        return event_time_ms

    def _dense(self, field: str, size: int, out: NDArray[np.float32]) -> None:
        """Fills `out`, `[n, size]`, which is zeros."""
        column, values = self._numbers(field)
        if size > 1:
            lengths = column.lengths
            wrong = np.flatnonzero(column.present & (lengths != size))
            self.problems.flag(
                wrong,
                "length",
                field,
                lambda row: f"the list has {lengths[row]} numbers; the slot's size is {size}",
            )
            if len(wrong):
                return
        out[column.present] = values.reshape(-1, size)

    def _sparse(self, name: str, slot: SparseSlot) -> Ragged:
        field = slot.field or name
        column = self._column(field)
        ids = self._hash(name, column.values)
        if slot.weights is None:
            return Ragged(ids, column.offsets)
        weights, values = self._numbers(slot.weights)
        have, want = weights.lengths, column.lengths
        self.problems.flag(
            np.flatnonzero(have != want),
            "length",
            slot.weights,
            lambda row: f"the list has {have[row]} weights for the {want[row]} ids of field {field!r}",
        )
        return Ragged(ids, column.offsets, values)

    def _sequence(self, name: str, slot: SequenceSlot) -> Ragged:
        column = self._column(slot.field or name)
        lengths = column.lengths
        values, offsets = column.values, column.offsets
        if lengths.max(initial=0) > slot.length_max:
            kept = np.minimum(lengths, slot.length_max)
            shortened = np.zeros(len(offsets), np.int64)
            np.cumsum(kept, out=shortened[1:])
            # Kept value j of row i is the row's end minus as many as the row keeps from j on.
            tail = np.arange(shortened[-1]) + np.repeat(offsets[1:] - shortened[1:], kept)
            values, offsets = values.take(tail), shortened
        return Ragged(self._hash(name, values), offsets)

    def _bucket(self, name: str, slot: BucketSlot) -> Ragged:
        field = slot.field or name
        column = self._column(field)
        # The bucket is found in float64, so that a boundary means what the TOML says.
        self._flag_non_finite(column, column.values, field, "the number is not finite")
        buckets = np.searchsorted(np.asarray(slot.boundaries), column.values, side="right")
        return Ragged(self.columns._bucket_ids[name][buckets], column.offsets)

    def _cross(self, name: str, slot: CrossSlot, ids: dict[str, Ragged]) -> Ragged:
        parts = [ids[part] for part in slot.of]
        counts = np.ones(self.table.num_rows, np.int64)
        for part in parts:
            # Held just above the bound, so that the product of four long lists stays within 64 bits.
            counts = np.minimum(counts, slot.combinations_max + 1) * np.diff(part.offsets)
        many = np.flatnonzero(counts > slot.combinations_max)
        self.problems.flag(
            many,
            "too_large",
            name,
            f"the cross has more than combinations_max = {slot.combinations_max} combinations",
        )
        counts[many] = 0
        offsets = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        return Ragged(
            hash_crosses([p.values for p in parts], [p.offsets for p in parts], offsets, name), offsets
        )
