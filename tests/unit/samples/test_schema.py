"""What a schema refuses, and the slots that share ids."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from streamtrain.samples.batch import Ragged
from streamtrain.samples.schema import LEAF, Schema


def schema(**slots: dict[str, Any]) -> Schema:
    return Schema.model_validate({"labels": ["y"], "slots": slots})


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ({"a": {"kind": "bucket", "boundaries": [1.0, 1.0]}}, "boundaries must be finite and ascending"),
        (
            {"a": {"kind": "bucket", "boundaries": [1.0, float("nan")]}},
            "boundaries must be finite and ascending",
        ),
        ({"a": {"kind": "bucket", "boundaries": [float("inf")]}}, "boundaries must be finite and ascending"),
        ({"a": {"weights": "w", "pooling": "weighted"}}, "weights need many = true"),
        ({"a": {"many": True, "weights": "w"}}, 'weights and pooling = "weighted" go together'),
        (
            {"a": {}, "c": {"kind": "cross", "of": ["a", "b"]}},
            "slots.c.of: 'b' is not a sparse, bucket or cross slot above it",
        ),
        ({"a": {}, "c": {"kind": "cross", "of": ["a", "c"]}}, "slots.c.of: 'c' is not"),
        ({"a": {"shares": "b"}}, "slots.a.shares: 'b' is not a sparse or sequence slot that owns its ids"),
        ({"a": {"shares": "a"}}, "slots.a.shares: 'a' is not a sparse or sequence slot that owns its ids"),
        (
            {"a": {}, "b": {"shares": "a", "type": "string"}},
            "slots.b.shares: 'a' holds int ids, this slot string",
        ),
        ({"a": {}, "b": {"shares": "a", "table": "t"}}, "slots.b: give shares or table, not both"),
        ({"a": {"sizes": 3}}, "slots.a.sparse.sizes\n  Extra inputs are not permitted"),
    ],
)
def test_a_contradiction_is_named(slots: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as refused:
        schema(**slots)
    assert message in str(refused.value)


def test_a_slot_that_shares_has_the_namespace_and_table_of_the_other() -> None:
    made = schema(item={"table": "items"}, history={"kind": "sequence", "shares": "item"}, user={})
    assert (made.namespace("history"), made.table("history")) == ("item", "items")
    assert (made.namespace("user"), made.table("user")) == ("user", None)


@given(st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=1, max_size=6), st.data())
def test_slices_of_ragged_ids_concatenate_to_the_whole(rows: list[list[int]], data: st.DataObject) -> None:
    values = np.array([value for row in rows for value in row], np.uint64)
    offsets = np.cumsum([0] + [len(row) for row in rows])
    whole = Ragged(values, offsets, values.astype(np.float32))
    cuts = sorted({0, len(rows), *data.draw(st.lists(st.integers(0, len(rows)), max_size=3))})
    joined = Ragged.concat([whole.slice(start, stop) for start, stop in pairwise(cuts)])
    assert joined.values.tolist() == values.tolist() and joined.offsets.tolist() == offsets.tolist()
    assert joined.weights is not None and joined.weights.tolist() == values.tolist()


def grouped_schema(**slots: Any) -> Schema:
    levels = [{"name": "user", "children": "ads"}, {"name": "ad", "children": "creatives"}]
    return Schema.model_validate({"labels": ["y"], "levels": levels, "slots": slots})


def test_a_cross_belongs_to_the_deepest_level_of_its_parts() -> None:
    schema = grouped_schema(
        u={"level": "user"},
        a={"level": "ad"},
        leaf={},
        ua={"kind": "cross", "of": ["a", "u"]},
        uaul={"kind": "cross", "of": ["ua", "leaf"]},
    )
    levels = [schema.level(name) for name in schema.slots]
    assert levels == ["user", "ad", LEAF, "ad", LEAF]


@pytest.mark.parametrize(
    ("slots", "complaint"),
    [
        ({"u": {"level": "usr"}}, r"slots.u.level: 'usr' is not one of `levels`; there are: user, ad"),
        (
            {"u": {"level": "ad", "field": "creatives"}},
            "its field 'creatives' holds the children of level 'ad'",
        ),
    ],
)
def test_levels_that_cannot_be_are_refused(slots: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        grouped_schema(**slots)


def test_levels_of_one_name_and_levels_of_no_schema_are_refused() -> None:
    twice = [{"name": "user", "children": "ads"}, {"name": "user", "children": "creatives"}]
    with pytest.raises(ValidationError, match="levels must have distinct names"):
        Schema.model_validate({"labels": ["y"], "levels": twice, "slots": {"u": {}}})
    with pytest.raises(ValidationError, match=r"slots.u.level: 'user' .* the schema has no levels"):
        Schema.model_validate({"labels": ["y"], "slots": {"u": {"level": "user"}}})
