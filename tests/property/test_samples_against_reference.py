"""Decoding, the fast way and the exact way, against the oracle of one sample at a time."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamtrain.errors import BadSample
from streamtrain.samples.decoded import DecodedChunk
from streamtrain.samples.decoder import Decoder
from streamtrain.samples.json_check import PlainCheck
from streamtrain.samples.json_codec import JsonCodec
from streamtrain.samples.values import table_of
from streamtrain.sources import TIME_UNKNOWN
from tests.reference_samples import read_sample
from tests.unit.samples.schemas import EVERYTHING, chunk_of

DECODER = Decoder(EVERYTHING)
CODEC = JsonCodec(EVERYTHING)
PLAIN = PlainCheck(EVERYTHING, DECODER.columns.fields)

ints = st.one_of(st.integers(-5, 120), st.sampled_from([2**63 - 1, -(2**63)]))
strings = st.text(max_size=40)
numbers = st.one_of(st.floats(-20, 20, width=32), st.integers(-3, 12), st.just(-0.0))
unit = st.one_of(st.floats(0, 1), st.sampled_from([0, 1]))


def fields(**wild: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Records of EVERYTHING that are mostly good; `wild` values stand in any field now and then."""
    good = {
        "time": st.integers(0, 2**41),
        "w": st.floats(0, 3),
        "user": ints,
        "word": strings,
        "tags": st.lists(strings, max_size=3),
        "said": st.lists(strings, max_size=4),
        "history": st.lists(ints, max_size=6),
        "price": numbers,
        "vector": st.lists(numbers, min_size=2, max_size=2),
        "extra": st.recursive(
            st.none() | strings, lambda children: st.lists(children, max_size=2), max_leaves=4
        ),
    }
    some = {name: st.one_of(strategy, *wild.values()) for name, strategy in good.items()}
    labels = {name: st.one_of(unit, *wild.values()) for name in ("click", "like")}
    topics = st.lists(st.tuples(ints, numbers), max_size=2).map(
        lambda pairs: {"topics": [p[0] for p in pairs], "topic_weights": [p[1] for p in pairs]}
    )
    return st.tuples(st.fixed_dictionaries(labels, optional=some), topics).map(lambda both: both[0] | both[1])


nasty = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(
        [
            2**63,
            -(2**63) - 1,
            10**25,
            -0.5,
            1e39,
            1e308,
            1.5,
            -1,
            "1",
            [],
            [None],
            [1.5, 2],
            ["a", None],
            {},
            [[1]],
        ]
    ),
    st.lists(ints | strings, max_size=5),
)
good_records = fields()
any_records = st.one_of(fields(), fields(nasty=nasty))


def assert_is_what_the_reference_reads(decoded: DecodedChunk, records: list[dict[str, Any]]) -> None:
    expected = [read_sample(EVERYTHING, record, 1_000 + i) for i, record in enumerate(records)]
    good = [i for i, sample in enumerate(expected) if not sample.problems]
    assert decoded.offsets.tolist() == good
    for bad in decoded.bad:
        assert bad.offset is not None and (bad.reason, bad.field) in expected[bad.offset].problems
    assert sorted([*good, *(bad.offset for bad in decoded.bad)]) == list(range(len(records)))
    batch = decoded.batch
    assert batch.size == len(good)
    for at, row in enumerate(good):
        sample = expected[row]
        for name, ids in sample.ids.items():
            ragged = batch.ids[name].slice(at, at + 1)
            assert ragged.values.tolist() == ids, name
            if name in sample.weights_of:
                assert ragged.weights is not None and ragged.weights.tolist() == sample.weights_of[name]
        assert batch.dense[at].tolist() == sample.dense
        assert batch.labels[at].tolist() == sample.labels
        assert batch.weights[at] == sample.weight
        assert batch.event_time_ms[at] == sample.event_time_ms
        assert batch.record_time_ms[at] == 1_000 + row


@settings(max_examples=150, deadline=None)
@given(st.lists(good_records, min_size=1, max_size=8), st.booleans())
def test_plain_records_take_the_columnar_way_and_mean_what_the_reference_reads(
    records: list[dict[str, Any]], escaped: bool
) -> None:
    payloads = [json.dumps(record, ensure_ascii=escaped).encode() for record in records]
    assert PLAIN.of(payloads).all(), "not one of them is left to the exact way"
    assert_is_what_the_reference_reads(DECODER.decode(chunk_of(payloads)), records)


@settings(max_examples=200, deadline=None)
@given(st.lists(any_records, min_size=1, max_size=5))
def test_any_json_objects_mean_what_the_reference_reads(records: list[dict[str, Any]]) -> None:
    payloads = [json.dumps(record).encode() for record in records]
    assert_is_what_the_reference_reads(DECODER.decode(chunk_of(payloads)), records)


TOKENS = [
    *'{}[]",:\\ \n\t\r\x00\x0b\x0c',
    *(
        "NaN",
        "Infinity",
        "-Infinity",
        "1e400",
        "1e99",
        "-0",
        "01",
        "1.",
        ".5",
        "1e",
        "+1",
        "9" * 130,
        "0x1",
        "tru",
        "null",
    ),
    *(
        r"\ud800",
        r"\udc00",
        r"\ud83d\ude00",
        r"\\ud83d\ude00",
        r"\u00",
        r"\u0000",
        r"\/",
        r"\x",
        "\ufeff",
        "é",
        "\u2028",
    ),
    *(
        '"user":1',
        '"user":1.0',
        '"user":true',
        '"price":NaN',
        '"price":1e3',
        '"click":null',
        "{}{}",
        "[" * 70 + "]" * 70,
    ),
]
seeds = st.one_of(
    any_records.map(lambda record: json.dumps(record).encode()),
    st.sampled_from(
        [
            b'{"click":1,"like":0}',
            b'{"click": 1, "user": 5, "word": "a", "x": {"y": [1, {"z": null}]}}',
            b"{}",
        ]
    ),
)


@st.composite
def broken_payloads(draw: st.DrawFn) -> bytes:
    """JSON with a few tokens, or raw bytes, put in or taken out anywhere."""
    payload = draw(seeds)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(payload)))
        drop = draw(st.integers(0, 3))
        token = draw(st.one_of(st.sampled_from(TOKENS).map(str.encode), st.binary(max_size=2)))
        payload = payload[:at] + token + payload[at + drop :]
    return payload or b" "


@settings(max_examples=400, deadline=None)
@given(st.lists(broken_payloads(), min_size=1, max_size=3))
def test_the_two_ways_agree_on_every_payload(payloads: list[bytes]) -> None:
    plain = [payload for payload, is_plain in zip(payloads, PLAIN.of(payloads)) if is_plain]
    if not plain:
        return
    rows = []
    for payload in plain:
        exact = CODEC.exact(payload)
        assert not isinstance(exact, BadSample) and not exact[1]
        rows.append(exact[0])
    assert CODEC.columns(plain).equals(table_of(rows, DECODER.columns.arrow_schema))


@settings(max_examples=100, deadline=None)
@given(st.lists(broken_payloads(), min_size=2, max_size=5))
def test_a_record_means_the_same_whatever_stands_beside_it(payloads: list[bytes]) -> None:
    together = DECODER.decode(chunk_of(payloads))
    alone = [DECODER.decode(chunk_of([payload], first=i)) for i, payload in enumerate(payloads)]
    assert together.offsets.tolist() == [i for i, one in enumerate(alone) if one.batch.size]
    assert [str(bad) for bad in together.bad] == [str(bad) for one in alone for bad in one.bad]
    for name in together.batch.ids:
        values = [one.batch.ids[name].values for one in alone]
        assert together.batch.ids[name].values.tolist() == np.concatenate(values).tolist()


@settings(max_examples=100, deadline=None)
@given(st.lists(any_records, min_size=1, max_size=5))
def test_served_samples_are_read_as_streamed_ones(records: list[dict[str, Any]]) -> None:
    # Nobody knows when they reached a source, so no event time can be ahead of that.
    expected = [read_sample(EVERYTHING, {"click": 0, "like": 0} | record, TIME_UNKNOWN) for record in records]
    # A missing label is no fault of a sample to be served.
    problems = [sample.problems - {("missing", "click"), ("missing", "like")} for sample in expected]
    if any(problems):
        with pytest.raises(BadSample) as refused:
            DECODER.decode_samples(records)
        index = refused.value.offset
        assert index is not None and (refused.value.reason, refused.value.field) in problems[index]
    else:
        batch = DECODER.decode_samples(records)
        for name, ragged in batch.ids.items():
            assert ragged.values.tolist() == [id for sample in expected for id in sample.ids[name]]
