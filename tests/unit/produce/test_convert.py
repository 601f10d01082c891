"""Files of flat samples become files of trees that mean the same, in every format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamtrain.errors import BadSample, ConfigError
from streamtrain.produce.convert import Grouping, convert
from streamtrain.samples.batch import SampleBatch
from streamtrain.samples.codec import file_codec_of
from streamtrain.samples.decoder import Decoder
from streamtrain.samples.schema import Schema
from tests.unit.samples.schemas import chunk_of

LEVELS = [{"name": "user", "children": "ads"}, {"name": "ad", "children": "shown"}]
SLOTS: dict[str, Any] = {
    "user": {"level": "user"},
    "seen": {"kind": "sequence", "level": "user"},
    "ad": {"level": "ad", "type": "string"},
    "place": {},
}
GROUPED = Schema.model_validate({"labels": ["click"], "slots": SLOTS, "levels": LEVELS})


FLAT = pa.schema(
    [
        ("user", pa.int32()),
        ("seen", pa.list_(pa.int64())),
        ("ad", pa.string()),
        ("place", pa.int64()),
        ("click", pa.int8()),
    ]
)


def samples(count: int = 60) -> list[dict[str, Any]]:
    """Users with up to 7 samples in a row, ads with up to 3; now and then a field is missing."""
    random = np.random.default_rng(1)
    found: list[dict[str, Any]] = []
    while len(found) < count:
        user = {"user": int(random.integers(4))} | ({"seen": [1, 2]} if random.random() < 0.7 else {})
        for _ in range(random.integers(1, 4)):
            ad = {"ad": f"ad {random.integers(3)}"}
            for _ in range(random.integers(1, 4)):
                found.append(user | ad | {"place": int(random.integers(9)), "click": int(random.integers(2))})
    return found[:count]


def read(path: Path) -> SampleBatch:
    """The samples of a file of trees, expanded."""
    decoder = Decoder(GROUPED)
    chunks = [
        decoder.decode(chunk_of(run.records))
        for run in file_codec_of(path).rows(path, 0, decoder.columns.arrow_schema.names, 7)
    ]
    assert not any(chunk.bad for chunk in chunks)
    return SampleBatch.concat([chunk.batch for chunk in chunks]).expanded()


def same(one: SampleBatch, two: SampleBatch) -> bool:
    return all(
        np.array_equal(one.ids[name].values, two.ids[name].values)
        and np.array_equal(one.ids[name].offsets, two.ids[name].offsets)
        for name in SLOTS
    ) and np.array_equal(one.labels, two.labels)


@pytest.mark.parametrize("output", ["trees.jsonl", "trees.parquet", "trees.arrow"])
@pytest.mark.parametrize("source", ["flat.jsonl", "flat.parquet", "flat.arrow"])
def test_trees_of_a_file_hold_its_samples_in_their_order(tmp_path: Path, source: str, output: str) -> None:
    flat = samples()
    path = tmp_path / source
    if source.endswith("jsonl"):
        path.write_text("".join(json.dumps(sample) + "\n" for sample in flat))
    elif source.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(flat, FLAT), path)
    else:
        table = pa.Table.from_pylist(flat, FLAT)
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=13)
    done = convert([path], tmp_path / output, GROUPED, Grouping(GROUPED, [], 100, 1000))
    assert done.samples == len(flat) and done.records < len(flat) and done.bytes_in == path.stat().st_size
    assert same(read(tmp_path / output), Decoder(GROUPED).decode_samples(flat))
    again = convert([tmp_path / output], tmp_path / "again.arrow", GROUPED)
    assert (again.samples, again.records) == (done.samples, done.records)
    assert same(read(tmp_path / "again.arrow"), read(tmp_path / output))


def test_sorting_brings_more_together_within_a_window_and_loses_nothing(tmp_path: Path) -> None:
    flat = samples()
    (tmp_path / "flat.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in flat))
    counts = [
        convert(
            [tmp_path / "flat.jsonl"],
            tmp_path / f"{window}.jsonl",
            GROUPED,
            Grouping(GROUPED, by, window, 1000),
        ).records
        for by, window in (([], 1), (["user", "seen", "ad"], 100))
    ]
    users = {(sample["user"], "seen" in sample) for sample in flat}
    assert counts[0] > counts[1] == len(users)
    ids = Decoder(GROUPED).decode_samples(flat).ids["place"].values
    assert sorted(read(tmp_path / "100.jsonl").ids["place"].values.tolist()) == sorted(ids.tolist())


def test_a_tree_ends_with_so_many_leaves(tmp_path: Path) -> None:
    (tmp_path / "flat.jsonl").write_text('{"user": 1, "ad": "a", "click": 1}\n' * 10)
    done = convert(
        [tmp_path / "flat.jsonl"], tmp_path / "t.jsonl", GROUPED, Grouping(GROUPED, [], 1, leaves_max=4)
    )
    assert (done.samples, done.records) == (10, 3)


def test_what_cannot_be_converted_is_told_and_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "flat.jsonl"
    path.write_text('{"user": 1, "click": 1}\n{"user": "x", "click": 1}\n')
    grouping = Grouping(GROUPED, [], 1, 1000)
    with pytest.raises(BadSample, match=r"field 'user': .*flat\.jsonl row 1: schema\.slots\.user reads"):
        convert([path], tmp_path / "t.arrow", GROUPED, grouping)
    with pytest.raises(ConfigError, match=r"t\.csv: its name must end with"):
        convert([path], tmp_path / "t.csv", GROUPED, grouping)
    with pytest.raises(ConfigError, match="exists"):
        convert([path], path, GROUPED, grouping)
    assert [p.name for p in tmp_path.iterdir()] == ["flat.jsonl"]
    with pytest.raises(ConfigError, match="there are none"):
        Grouping(Schema.model_validate({"labels": ["y"], "slots": {"a": {}}}), [], 1, 1)
    with pytest.raises(ConfigError, match="no such field"):
        Grouping(GROUPED, ["nobody"], 1, 1)
