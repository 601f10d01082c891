"""The decoder: what a user is told of bad records, and the ways into it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import orjson
import pyarrow as pa
import pytest

from streamtrain.errors import BadSample, ConfigError
from streamtrain.samples.codec import RecordRows
from streamtrain.samples.decoder import Decoder
from streamtrain.samples.json_codec import JsonCodec
from streamtrain.samples.schema import Schema
from tests.reference_samples import feature_id
from tests.unit.samples.schemas import SMALL, chunk_of

GOOD = b'{"click": 1, "user": 5, "tags": [1, 2]}'


class Clumsy(JsonCodec):
    """A third party's codec, which trips over some records."""

    def decode(self, records: Sequence[bytes]) -> RecordRows:
        if any(b"trip" in record for record in records):
            raise KeyError("columns") if len(records) > 1 else ZeroDivisionError("one")
        rows = super().decode(records)
        lost = any(b"lose" in record for record in records)
        return RecordRows(rows.table.slice(1)) if lost else rows


def test_a_record_that_a_codec_trips_over_is_bad_and_the_others_are_learned() -> None:
    good = b'{"user": 1, "click": 1}'
    decoder = Decoder(SMALL, codec=f"{__name__}:Clumsy")
    decoded = decoder.decode(chunk_of([good, b'{"trip": 1}', good]))
    assert decoded.offsets.tolist() == [0, 2]
    (bad,) = decoded.bad
    assert (bad.reason, bad.offset) == ("codec", 1)
    assert f"codec '{__name__}:Clumsy' failed: ZeroDivisionError: one" in str(bad)
    with pytest.raises(ConfigError, match="decode made 1 rows of 2 records"):
        decoder.decode(chunk_of([good, b'{"lose": 1, "user": 1, "click": 1}']))


def test_bad_records_are_named_by_partition_offset_and_field() -> None:
    records = [
        GOOD,
        None,
        b"",
        b'{"click": 1, "user": "5"}',
        b'{"click": true}',
        b'{"click": 1, "tags": [1, 2.0]}',
        b'{"click": 1, "user": 9223372036854775808}',
        b'[{"click": 1}]',
        b'{"click": 1, "tags": 3}',
        b'{"click": 3}',
        b'{"click": 1, "x": "' + b"y" * 200 + b'"}',
        GOOD,
    ]
    decoded = Decoder(SMALL, record_bytes_max=200).decode(chunk_of(records, partition="clicks:3", first=40))
    assert decoded.offsets.tolist() == [40, 51] and decoded.batch.size == 2
    assert [f"{bad.reason}: {bad}" for bad in decoded.bad] == [
        "missing: clicks:3 offset 41: the record is null",
        "missing: clicks:3 offset 42: the record is empty",
        "type: clicks:3 offset 43: field 'user': schema.slots.user reads an integer, found a string ('5')",
        "type: clicks:3 offset 44: field 'click': schema.labels reads a number, found true or false (True); write 1 or 0",
        "type: clicks:3 offset 45: field 'tags': schema.slots.tags reads a list of integers, found a float (2.0)",
        "type: clicks:3 offset 46: field 'user': 9223372036854775808 is beyond 64-bit integers with sign",
        "json: clicks:3 offset 47: the record is a list, not a JSON object",
        "type: clicks:3 offset 48: field 'tags': schema.slots.tags reads a list of integers, found an integer (3)",
        "label: clicks:3 offset 49: field 'click': the label is 3; it must be from 0 to 1",
        "too_large: clicks:3 offset 50: the record has 221 bytes or more; record_bytes_max is 200",
    ]


def test_broken_json_is_said_to_be() -> None:
    decoded = Decoder(SMALL).decode(
        chunk_of([b'{"click": 1', b'{"click": 1} {"click": 0}', b'{"click": "\xff"}'])
    )
    assert decoded.batch.size == 0
    for bad in decoded.bad:
        assert bad.reason == "json" and "the record is not valid JSON" in bad.detail


@pytest.mark.parametrize(
    "record",
    [
        b'{"click": NaN}',
        b'{"click": 1, "x": NaN}',
        b'{"click": 1, "x": "\xff"}',
        b'{"click": 1, "x": ' + b"[" * 2000 + b"]" * 2000 + b"}",
        b'{"click": 1, "x": ' + b"9" * 400 + b"}",
        b'{"click": 1}\x00junk}',
        b'\xef\xbb\xbf{"click": 1}',
        b'{"click": 1, "x": "a\nb"}',
        b'{"click": 1, "x": "\\udc00"}',
        b'{"click": 1, "x": "\\\\ud83d\\ude00"}',
    ],
)
def test_what_arrow_may_let_pass_is_refused(record: bytes) -> None:
    decoded = Decoder(SMALL).decode(chunk_of([GOOD, record, GOOD]))
    assert [bad.offset for bad in decoded.bad] == [1] and decoded.bad[0].reason == "json"


def test_a_key_given_twice_counts_with_its_last_value() -> None:
    decoded = Decoder(SMALL).decode(chunk_of([b'{"click": 1, "user": 5, "user": 6}', GOOD]))
    assert decoded.batch.ids["user"].values.tolist() == [feature_id("user", 6), feature_id("user", 5)]


def test_pretty_printed_records_are_columnar_too() -> None:
    payloads = [
        orjson.dumps({"click": 1, "user": n, "tags": [n]}, option=orjson.OPT_INDENT_2) for n in range(3)
    ]
    table = JsonCodec(SMALL).columns(payloads)
    assert table.column("user").to_pylist() == [0, 1, 2]


def test_a_chunk_without_any_good_record_still_advances() -> None:
    decoded = Decoder(SMALL).decode(chunk_of([None, None], first=7, next=20))
    assert (decoded.first, decoded.next, decoded.batch.size, len(decoded.bad)) == (7, 20, 0, 2)


def test_an_empty_chunk_is_a_gap() -> None:
    decoded = Decoder(SMALL).decode(chunk_of([], first=7, next=20))
    assert (decoded.first, decoded.next, decoded.batch.size, decoded.bad) == (7, 20, 0, ())


def test_an_arrow_chunk_keeps_its_offsets() -> None:
    table = pa.table({"click": [0.0, 2.0, 1.0], "user": [1, 2, 3]})
    decoded = Decoder(SMALL).decode(chunk_of(table, offsets=[10, 11, 15], times_ms=[1, 2, 3]))
    assert decoded.offsets.tolist() == [10, 15] and decoded.batch.record_time_ms.tolist() == [1, 3]
    assert [bad.offset for bad in decoded.bad] == [11]


def test_a_schema_that_does_not_fit_names_the_file() -> None:
    with pytest.raises(ConfigError, match=r"day1.parquet: field 'user': the column holds string"):
        Decoder(SMALL).decode(chunk_of(pa.table({"click": [1], "user": ["a"]}), partition="day1.parquet"))


def test_served_samples_need_no_label_and_may_hold_numpy_values() -> None:
    batch = Decoder(SMALL).decode_samples(
        [{"user": np.int32(5), "tags": np.array([1, 2])}, {"tags": (np.int64(7),)}, {}]
    )
    assert batch.ids["user"].values.tolist() == [feature_id("user", 5)]
    assert batch.ids["tags"].offsets.tolist() == [0, 2, 3, 3]
    assert batch.labels.tolist() == [[0.0]] * 3
    assert Decoder(SMALL).decode_samples([]).size == 0


@pytest.mark.parametrize(
    ("sample", "text"),
    [
        ({"user": "5"}, "field 'user': sample 1: schema.slots.user reads an integer, found a string ('5')"),
        ({"tags": [1, None]}, "field 'tags': sample 1: the list holds a null"),
        ({"user": 2**70}, "sample 1: 1180591620717411303424 is beyond"),
    ],
)
def test_a_served_sample_that_is_bad_is_named_by_index_and_field(
    sample: dict[str, object], text: str
) -> None:
    with pytest.raises(BadSample) as refused:
        Decoder(SMALL).decode_samples([{"user": 1}, sample])
    assert text in str(refused.value) and refused.value.offset == 1


def test_a_string_that_is_no_unicode_is_a_bad_sample() -> None:
    schema = Schema.model_validate({"labels": ["y"], "slots": {"word": {"type": "string"}}})
    with pytest.raises(BadSample, match="not valid Unicode"):
        Decoder(schema).decode_samples([{"word": "\ud800"}])


def test_threads_may_share_a_decoder() -> None:
    decoder = Decoder(SMALL)
    chunks = [chunk_of([b'{"click": 1, "user": %d, "tags": [%d]}' % (n, n)] * 50 + [b"{"]) for n in range(16)]
    with ThreadPoolExecutor(4) as pool:
        decoded = list(pool.map(decoder.decode, chunks))
    assert [d.batch.ids["user"].values.tolist() for d in decoded] == [
        [feature_id("user", n)] * 50 for n in range(16)
    ]


def test_nothing_compiles_after_warm_up() -> None:
    """In a process of its own with an empty cache: the first chunk of a stream must not wait for a compiler."""
    code = """
import numpy as np
from numba.core import event
from streamtrain.samples.decoder import Decoder
from streamtrain.samples.schema import Schema
from streamtrain.sources import Chunk

slots = {
    "user": {}, "tags": {"type": "string", "many": True, "weights": "shares", "pooling": "weighted"},
    "recent": {"kind": "sequence", "shares": "user", "length_max": 3}, "price": {"kind": "bucket", "boundaries": [1, 2]},
    "embedding": {"kind": "dense", "size": 3}, "both": {"kind": "cross", "of": ["user", "tags"]},
}
decoder = Decoder(Schema(labels=["click"], weight="w", event_time="t", slots=slots))
decoder.warm_up()
compiled = event.install_recorder("numba:compile")
with compiled as recorder:
    record = b'{"user": 7, "tags": ["x", "y"], "shares": [1, 2], "recent": [1, 2, 3, 4], "price": 1.5, "embedding": [1, 2, 3], "click": 1, "t": 5}'
    records = [record, b'{"user": "bad", "click": 1}', b'{"click": 0}']
    decoded = decoder.decode(Chunk("p", 0, 3, np.arange(3), np.zeros(3, np.int64), records))
assert (decoded.batch.size, len(decoded.bad)) == (2, 1), decoded
print(len(recorder.buffer))
"""
    with tempfile.TemporaryDirectory() as cache:
        run = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env=os.environ | {"NUMBA_CACHE_DIR": cache},
            check=False,
        )
    assert run.stdout.strip() == "0", run.stderr
