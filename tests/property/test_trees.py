"""Records of many samples, in JSON and in Arrow, against the oracle of one sample at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from streamtrain.samples.arrow_codec import ArrowCodec
from streamtrain.samples.decoded import DecodedChunk
from streamtrain.samples.decoder import Decoder
from streamtrain.samples.schema import LEAF, Schema
from streamtrain.samples.values import table_of
from tests.reference_samples import Sample, read_sample
from tests.unit.samples.schemas import chunk_of

_SLOTS: dict[str, dict[str, Any]] = {
    "user": {"level": "user"},
    "history": {"kind": "sequence", "level": "user", "shares": "user", "length_max": 3},
    "campaign": {"level": "ad", "type": "string"},
    "price": {"kind": "dense", "level": "ad"},
    "tags": {"many": True, "type": "string"},
    "price_band": {"kind": "bucket", "field": "price", "level": "ad", "boundaries": [0.0, 2.0]},
    "user_x_band": {"kind": "cross", "of": ["user", "price_band"]},
    "user_x_tags": {"kind": "cross", "of": ["user", "tags"], "combinations_max": 2},
    "rank": {"kind": "dense"},
}
_LEVELS = [{"name": "user", "children": "ads"}, {"name": "ad", "children": "creatives"}]
GROUPED = Schema.model_validate({"labels": ["click"], "weight": "w", "slots": _SLOTS, "levels": _LEVELS})
FLAT = Schema.model_validate(
    {
        "labels": ["click"],
        "weight": "w",
        "slots": {name: {k: v for k, v in slot.items() if k != "level"} for name, slot in _SLOTS.items()},
    }
)
JSON, ARROW = Decoder(GROUPED), Decoder(GROUPED, codec="streamtrain.samples.arrow_codec:ArrowCodec")

_numbers = st.one_of(st.floats(-3, 4, width=32), st.integers(-2, 3), st.just(1e39))
_nasty = st.sampled_from([None, True, 2**63, 1.5, "1", [], [None], {}, [[1]]])


def _nodes(children: st.SearchStrategy[Any] | None, **fields: st.SearchStrategy[Any]) -> Any:
    known = {} if children is None else {"ads" if "user" in fields else "creatives": children}
    return st.fixed_dictionaries(known, optional=fields)


def trees(wild: st.SearchStrategy[Any] | None = None) -> st.SearchStrategy[dict[str, Any]]:
    """Records; `wild` values stand in any field now and then."""

    def some(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return strategy if wild is None else st.one_of(strategy, strategy, strategy, wild)

    leaf = _nodes(
        None,
        click=some(st.sampled_from([0, 1, 0.5, 2])),
        w=some(st.sampled_from([1, 2.0, -1])),
        tags=some(st.lists(st.text(max_size=2), max_size=3)),
        rank=some(_numbers),
    )
    ad = _nodes(st.lists(leaf, max_size=3), campaign=some(st.text(max_size=2)), price=some(_numbers))
    user = st.integers(0, 3)
    return _nodes(st.lists(ad, max_size=3), user=some(user), history=some(st.lists(user, max_size=5)))


def leaves_of(record: dict[str, Any]) -> list[Sample]:
    """Each leaf of a record, with everything that it and the nodes above it hold."""
    return [
        read_sample(FLAT, {**record, **ad, **leaf}, 1000) for ad in record["ads"] for leaf in ad["creatives"]
    ]


def assert_is_what_the_reference_reads(decoded: DecodedChunk, records: Sequence[Sequence[Sample]]) -> None:
    """Each record's leaves are those of the oracle."""
    expected = [
        (i, leaf, s, leaf + 1 == len(ls)) for i, ls in enumerate(records) for leaf, s in enumerate(ls)
    ]
    good = [place for place in expected if not place[2].problems]
    assert list(zip(decoded.offsets.tolist(), decoded.leaves.tolist(), decoded.last.tolist())) == [
        (offset, leaf, last) for offset, leaf, _, last in good
    ]
    refused = {
        (offset, None if len(records[offset]) == 1 else leaf): s
        for offset, leaf, s, _ in expected
        if s.problems
    }
    assert [(bad.offset, bad.leaf) for bad in decoded.bad] == list(refused)
    for bad in decoded.bad:
        assert (bad.reason, bad.field) in refused[bad.offset or 0, bad.leaf].problems
    batch = decoded.batch.expanded()
    assert batch.size == len(good)
    for at, (_, _, sample, _) in enumerate(good):
        for name, ids in sample.ids.items():
            assert batch.ids[name].slice(at, at + 1).values.tolist() == ids, name
        assert batch.dense[at].tolist() == sample.dense
        assert (batch.labels[at].tolist(), batch.weights[at]) == (sample.labels, sample.weight)
    for level in ("user", "ad"):
        # No node without a sample, and none that stands twice.
        nodes = decoded.batch.nodes[level]
        assert sorted(set(nodes.tolist())) == list(range(decoded.batch.rows(level)))
        held = [ragged for ragged in decoded.batch.ids.values() if ragged.level == level]
        assert all(len(ragged.offsets) == decoded.batch.rows(level) + 1 for ragged in held)
    assert {r.level for r in decoded.batch.ids.values()} == {"user", "ad", LEAF}


def ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@settings(max_examples=120, deadline=None)
@given(st.lists(trees(_nasty), min_size=1, max_size=4))
def test_any_json_trees_mean_what_the_reference_reads_of_each_leaf(records: list[dict[str, Any]]) -> None:
    decoded = JSON.decode(chunk_of([json.dumps(record).encode() for record in records]))
    assert_is_what_the_reference_reads(decoded, [leaves_of(record) for record in records])


@settings(max_examples=120, deadline=None)
@given(st.lists(trees(), min_size=1, max_size=6), st.data())
def test_arrow_records_mean_the_same_however_many_trees_are_in_one(
    records: list[dict[str, Any]], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(records)), max_size=4)))
    groups = [records[a:b] for a, b in zip([0, *cuts], [*cuts, len(records)])]
    payloads = [ipc(table_of(group, JSON.columns.arrow_schema)) for group in groups]
    decoded = ARROW.decode(chunk_of(payloads))
    assert_is_what_the_reference_reads(
        decoded, [[s for r in group for s in leaves_of(r)] for group in groups]
    )


@settings(max_examples=150, deadline=None)
@given(st.lists(trees(), min_size=1, max_size=3), st.data())
def test_a_damaged_arrow_record_is_refused_and_those_beside_it_are_not(
    records: list[dict[str, Any]], data: st.DataObject
) -> None:
    good = ipc(table_of(records, JSON.columns.arrow_schema))
    broken = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    broken = broken[: data.draw(st.integers(1, len(broken)))]
    decoded = ARROW.decode(chunk_of([good, bytes(broken), good]))
    alone = ARROW.decode(chunk_of([good]))
    for offset in (0, 2):
        own = decoded.offsets == offset
        assert decoded.leaves[own].tolist() == alone.leaves.tolist()
        assert [str(b) for b in decoded.bad if b.offset == 0] == [str(b) for b in alone.bad]


def test_columns_of_other_types_that_fit_stand_beside_one_another() -> None:
    codec = ArrowCodec(FLAT)
    one = pa.table({"click": pa.array([1], pa.int8()), "user": pa.array([7], pa.int32())})
    two = pa.table({"click": pa.array([0.0]), "user": pa.array([7], pa.uint16()), "other": ["x"]})
    rows = codec.decode([ipc(one), ipc(two)])
    assert rows.counts is not None and rows.counts.tolist() == [1, 1] and not rows.bad
    bad = codec.decode([ipc(one), ipc(pa.table({"user": [1]})), ipc(pa.table({"click": ["a"]})), b"x"]).bad
    assert [(i, e.reason, e.field) for i, e in bad.items()] == [
        (1, "missing", "click"),
        (2, "type", "click"),
        (3, "arrow", None),
    ]


def test_a_record_of_too_many_samples_is_refused_and_one_of_none_is_passed() -> None:
    decoder = Decoder(GROUPED, leaves_max=2)
    trees = [{"ads": [{"creatives": [{"click": 1}] * n}]} for n in (2, 3, 0, 1)]
    decoded = decoder.decode(chunk_of([json.dumps(tree).encode() for tree in trees]))
    assert decoded.offsets.tolist() == [0, 0, 3] and decoded.next == 4
    assert [str(bad) for bad in decoded.bad] == [
        "topic:0 offset 1: the record has 3 samples; source.leaves_max is 2"
    ]
