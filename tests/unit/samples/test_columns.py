"""Columns of a file's own types, and what is refused in them."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from streamtrain.errors import ConfigError
from streamtrain.samples.columns import SampleColumns
from streamtrain.samples.fields import fields_of
from streamtrain.samples.schema import Schema
from streamtrain.sources import TIME_UNKNOWN
from tests.reference_samples import feature_id


def columns(labels: list[str] | None = None, **slots: dict[str, Any]) -> SampleColumns:
    return SampleColumns(Schema.model_validate({"labels": labels or ["y"], "slots": slots}))


def table(**arrays: Any) -> pa.Table:
    rows = len(next(iter(arrays.values())))
    return pa.table({"y": pa.array([1] * rows, pa.int8()), **arrays})


def times(rows: int) -> np.ndarray:
    return np.arange(rows, dtype=np.int64)


@pytest.mark.parametrize(
    "type_", [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint32(), pa.uint64()]
)
def test_integers_of_every_width_are_the_same_feature(type_: pa.DataType) -> None:
    batch, good, bad = columns(user={}).extract(table(user=pa.array([7, None, 9], type_)), times(3))[:3]
    assert batch.ids["user"].values.tolist() == [feature_id("user", 7), feature_id("user", 9)]
    assert batch.ids["user"].offsets.tolist() == [0, 1, 1, 2]
    assert good.tolist() == [0, 1, 2] and bad == []


@pytest.mark.parametrize(
    "array",
    [
        pa.array(["a", None, "b"]),
        pa.array(["a", None, "b"], pa.large_string()),
        pa.DictionaryArray.from_arrays([1, 0, 2], [None, "a", "b"]),
        pa.array(["a", None, "b"]).dictionary_encode(),
        pa.array(["x", "a", None, "b"]).slice(1),
        pa.chunked_array([pa.array(["a"]), pa.array([None, "b"])]),
    ],
)
def test_strings_of_every_form_are_the_same_feature(array: pa.Array) -> None:
    batch, _, _ = columns(word={"type": "string"}).extract(table(word=array), times(3))[:3]
    assert batch.ids["word"].values.tolist() == [feature_id("word", "a"), feature_id("word", "b")]
    assert batch.ids["word"].offsets.tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize(
    "type_",
    [pa.list_(pa.int64()), pa.large_list(pa.int32()), pa.list_(pa.uint16(), 2), pa.list_(pa.int64(), 2)],
)
def test_lists_of_every_form_are_the_same_features(type_: pa.DataType) -> None:
    array = pa.array([[0, 0], [1, 2], None, [3, 4]], type_).slice(1)
    batch, _, _ = columns(tags={"many": True}).extract(table(tags=array), times(3))[:3]
    assert batch.ids["tags"].values.tolist() == [feature_id("tags", n) for n in (1, 2, 3, 4)]
    assert batch.ids["tags"].offsets.tolist() == [0, 2, 2, 4]


@pytest.mark.parametrize(
    "array",
    [
        pa.array([1, 0, None], pa.int16()),
        pa.array([True, False, None]),
        pa.array([1, 0, None], pa.float32()),
        pa.array([Decimal(1), Decimal(0), None], pa.decimal128(5, 2)),
    ],
)
def test_numbers_of_every_type_are_numbers(array: pa.Array) -> None:
    batch, _, _ = columns(x={"kind": "dense"}).extract(table(x=array), times(3))[:3]
    assert batch.dense.tolist() == [[1.0], [0.0], [0.0]] and batch.dense.dtype == np.float32


def test_a_label_may_be_a_bool() -> None:
    batch, _, _ = columns(user={}).extract(pa.table({"y": [True, False], "user": [1, 2]}), times(2))[:3]
    assert batch.labels.tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_an_event_time_may_be_a_timestamp(unit: str) -> None:
    schema = Schema.model_validate({"labels": ["y"], "event_time": "at", "slots": {"user": {}}})
    moment = dt.datetime(2022, 5, 8, 12, 0, 0)
    rows = table(at=pa.array([moment, None], pa.timestamp(unit, "UTC")), user=[1, 2])
    batch, _, _ = SampleColumns(schema).extract(rows, np.array([1_652_011_200_005, 6]))[:3]
    assert batch.event_time_ms.tolist() == [1_652_011_200_000, 6]
    assert batch.record_time_ms.tolist() == [1_652_011_200_005, 6]


def test_an_unknown_record_time_is_the_event_time() -> None:
    schema = Schema.model_validate({"labels": ["y"], "event_time": "at", "slots": {"user": {}}})
    batch, _, _ = SampleColumns(schema).extract(table(at=[70, None], user=[1, 2]), np.array([-1, -1]))[:3]
    assert batch.event_time_ms.tolist() == [70, TIME_UNKNOWN] == batch.record_time_ms.tolist()


def test_a_record_without_a_time_has_none_where_the_schema_names_none() -> None:
    """The year 1970 would be an event time like any other: the lineage and the watermark would tell of it."""
    batch, _, _ = columns(user={}).extract(table(user=[1]), np.array([TIME_UNKNOWN]))[:3]
    assert batch.event_time_ms.tolist() == [TIME_UNKNOWN] == batch.record_time_ms.tolist()


def test_an_event_time_far_after_its_record_is_refused() -> None:
    schema = Schema.model_validate(
        {"labels": ["y"], "event_time": "at", "event_time_ahead_max_s": 60, "slots": {"user": {}}}
    )
    rows = table(at=[61_000, 61_001, 999_000_000_000, None], user=[1, 2, 3, 4])
    batch, kept, bad = SampleColumns(schema).extract(rows, np.array([1000, 1000, -1, 7]))[:3]
    assert kept.tolist() == [0, 2, 3] and batch.event_time_ms.tolist() == [61_000, 999_000_000_000, 7]
    assert [(b.record, b.error.reason, b.error.field) for b in bad] == [(1, "range", "at")]
    assert "60.001 s after the record's own time" in bad[0].error.detail


def test_a_column_that_is_not_there_or_all_null_is_empty() -> None:
    made = columns(
        a={}, b={"type": "string", "many": True}, c={"kind": "dense", "size": 2}, d={"kind": "sequence"}
    )
    batch, good, _ = made.extract(table(d=pa.nulls(2)), times(2))[:3]
    assert good.tolist() == [0, 1] and batch.dense.tolist() == [[0.0, 0.0]] * 2
    assert all(ragged.offsets.tolist() == [0, 0, 0] for ragged in batch.ids.values())


def test_no_rows_are_no_samples() -> None:
    made = columns(a={}, b={"type": "string"}, c={"kind": "cross", "of": ["a", "b"]}, d={"kind": "sequence"})
    batch, good, bad = made.extract(made.arrow_schema.empty_table(), times(0))[:3]
    assert batch.size == 0 and len(good) == 0 and bad == [] and list(batch.ids) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("slot", "array", "message"),
    [
        (
            {},
            pa.array(["a"]),
            "field 'x': the column holds string, but schema.slots.x reads an integer; change the type",
        ),
        (
            {},
            pa.array([1.0]),
            "holds double, but schema.slots.x reads an integer; a float is no feature id: use a slot of kind",
        ),
        ({"type": "string"}, pa.array([1]), "holds int64, but schema.slots.x reads a string"),
        (
            {"many": True},
            pa.array([1]),
            "holds int64, but schema.slots.x reads a list of integers; a slot with many = false",
        ),
        (
            {},
            pa.array([[1]]),
            "holds list<item: int64>, but schema.slots.x reads an integer; a slot with many",
        ),
        ({"kind": "dense"}, pa.array(["1"]), "holds string, but schema.slots.x reads a number"),
        ({"kind": "dense"}, pa.array([dt.date(2020, 1, 1)]), "holds date32"),
        ({"type": "string"}, pa.array([b"a"]), "holds binary"),
    ],
)
def test_a_column_of_a_wrong_type_is_a_mistake_of_the_schema(
    slot: dict[str, Any], array: pa.Array, message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        columns(x=slot).extract(table(x=array), times(1))
    assert message in str(refused.value)


def test_a_missing_label_column_is_a_mistake_of_the_schema() -> None:
    with pytest.raises(ConfigError, match=r"no column 'y', which schema.labels names"):
        columns(x={}).extract(pa.table({"x": [1]}), times(1))


def test_two_columns_of_one_name_are_refused() -> None:
    doubled = pa.table([pa.array([1]), pa.array([1]), pa.array([2])], names=["y", "x", "x"])
    with pytest.raises(ConfigError, match="field 'x': 2 columns have this name"):
        columns(x={}).extract(doubled, times(1))


def test_bad_rows_are_named_and_the_others_kept() -> None:
    made = columns(
        labels=["y", "z"],
        user={},
        tags={"many": True, "weights": "tag_weights", "pooling": "weighted"},
        price={"kind": "dense"},
        vector={"kind": "dense", "size": 2},
        pairs={"kind": "cross", "of": ["user", "tags"], "combinations_max": 2},
    )
    good: dict[str, Any] = {
        "y": 1.0, "z": 0.0, "user": 1, "tags": [1], "tag_weights": [0.5], "price": 1.0, "vector": [1.0, 2.0],
    }  # fmt: skip
    wrong: list[tuple[dict[str, Any], tuple[int, str, str, str]]] = [
        ({"y": None}, (0, "missing", "y", "the label is missing")),
        ({"z": 1.5}, (0, "label", "z", "the label is 1.5; it must be from 0 to 1")),
        ({"y": float("nan")}, (0, "non_finite", "y", "a number is not finite as a 32-bit float")),
        ({"user": 2**63}, (0, "type", "user", "an integer is larger than 9223372036854775807")),
        ({"tags": [None]}, (0, "missing", "tags", "the list holds a null")),
        (
            {"tag_weights": []},
            (0, "length", "tag_weights", "the list has 0 weights for the 1 ids of field 'tags'"),
        ),
        (
            {"price": float("inf")},
            (0, "non_finite", "price", "a number is not finite as a 32-bit float"),
        ),
        ({"vector": [1.0]}, (0, "length", "vector", "the list has 1 numbers; the slot's size is 2")),
        (
            {"tags": [1, 2, 3], "tag_weights": [1.0, 1.0, 1.0]},
            (0, "too_large", "pairs", "the cross has more than combinations_max = 2 combinations"),
        ),
    ]
    rows = [good]
    for change, _ in wrong:
        rows += [{**good, **change}, good]
    rows_table = pa.Table.from_pylist(rows, made.arrow_schema.set(2, pa.field("user", pa.uint64())))
    batch, kept, bad = made.extract(rows_table, times(len(rows)))[:3]
    assert kept.tolist() == list(range(0, len(rows), 2)) and batch.record_time_ms.tolist() == kept.tolist()
    found = [(b.record, b.error.reason, b.error.field, b.error.detail) for b in bad]
    assert found == [(2 * i + 1, *problem[1:]) for i, (_, problem) in enumerate(wrong)]
    assert batch.dense.tolist() == [[1.0, 1.0, 2.0]] * len(kept)


def test_one_field_serves_several_slots() -> None:
    schema = {
        "labels": ["y"],
        "event_time": "t",
        "slots": {
            "hour": {"field": "t"},
            "band": {"kind": "bucket", "field": "t", "boundaries": [5.0]},
            "x": {"kind": "dense", "field": "t"},
        },
    }
    made = SampleColumns(Schema.model_validate(schema))
    assert made.arrow_schema.field("t").type == pa.int64()
    batch, _, _ = made.extract(table(t=[4, 5]), times(2))[:3]
    assert batch.ids["hour"].values.tolist() == [feature_id("hour", 4), feature_id("hour", 5)]
    assert batch.ids["band"].values.tolist() == [feature_id("band", 0), feature_id("band", 1)]
    assert batch.dense.tolist() == [[4.0], [5.0]]


def test_one_field_of_two_types_is_a_mistake_of_the_schema() -> None:
    slots = {"a": {"field": "x"}, "b": {"field": "x", "type": "string"}}
    schema = Schema.model_validate({"labels": ["y"], "slots": slots})
    with pytest.raises(
        ConfigError,
        match=r"slots.b reads the field 'x' as a string, but schema.slots.a reads it as an integer",
    ):
        fields_of(schema)
