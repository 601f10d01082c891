"""First jobs: what is guessed from a sample loads as it is, whatever the sample's fields are called."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from streamtrain.config import load_job
from streamtrain.errors import ConfigError
from streamtrain.starter import Choices, write_job


def written(folder: Path, sample: Path, choices: Choices | None = None) -> str:
    """The text of a first job, which loads."""
    text = write_job(sample, choices or Choices())
    (folder / "job.toml").write_text(text)
    load_job(folder / "job.toml", {})
    return text


def json_lines(folder: Path, *rows: dict[str, object], name: str = "samples.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_fields_become_the_slots_that_they_look_like(tmp_path: Path) -> None:
    row = {"user": 1, "item": "a", "tags": ["x"], "recent_items": [1, 2], "price": 1.5, "vector": [0.5, 1.5]}
    sample = json_lines(tmp_path, row | {"click": 1, "time_ms": 1_700_000_000_000})
    text = written(tmp_path, sample)
    job = load_job(tmp_path / "job.toml", {})
    kinds = {name: slot.kind for name, slot in job.sample_schema.slots.items()}
    assert kinds == {
        "user": "sparse",
        "item": "sparse",
        "tags": "sparse",
        "recent_items": "sequence",
        "price": "bucket",
        "vector": "dense",
    }
    assert 'labels = ["click"]' in text and 'event_time = "time_ms"' in text


def test_names_that_a_slot_cannot_have_stay_the_names_of_fields(tmp_path: Path) -> None:
    row = {"a b": 1, "a_b": 2, "a.b": 3, "1st": 4, 'q"uote': 5, "é": "x", "label": 1}
    text = written(tmp_path, json_lines(tmp_path, row, name="2024 clicks.jsonl"))
    slots = load_job(tmp_path / "job.toml", {}).sample_schema.slots
    assert {getattr(slot, "field", None) or name for name, slot in slots.items()} == set(row) - {"label"}
    assert 'name = "model_2024_clicks"' in text


def test_a_timestamp_column_is_found_as_the_event_time(tmp_path: Path) -> None:
    times = pa.array([datetime.datetime(2026, 1, 1)], pa.timestamp("ms"))
    pyarrow.parquet.write_table(
        pa.table({"user": [1], "ts": times, "click": [True]}), tmp_path / "samples.parquet"
    )
    assert 'event_time = "ts"' in written(tmp_path, tmp_path / "samples.parquet")


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (Choices(labels=["item"]), "'item' holds string; a label is a number"),
        (Choices(labels=["click"], event_time="item"), "'item' holds string; an event time"),
        (Choices(labels=["clock"]), "no field 'clock'; it has: item, click, a b"),
        (Choices(labels=["a b"]), "rename 'a b'"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(tmp_path: Path, choices: Choices, message: str) -> None:
    sample = json_lines(tmp_path, {"item": "a", "click": 1, "a b": 1})
    with pytest.raises(ConfigError, match=message):
        write_job(sample, choices)
