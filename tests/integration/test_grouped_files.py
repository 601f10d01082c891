"""Grouped samples from the shell: learned from Arrow files, evaluated, replayed, and taken to a model without levels and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.record import EpochRecord
from streamtrain.log.recovery import recover
from tests.daemon import inspected, streamtrain

QUIET = {"STREAMTRAIN__HTTP__ENABLED": "false"}

JOB = """
name = "grouped"
seed = 3
source = {{ kind = "files", paths = ["{folder}/{kind}.arrow"] }}
[schema]
labels = ["click"]
{levels}
[schema.slots]
user = {{ {level} }}
ad = {{ type = "string" }}
[tables.main]
dim = 4
[model]
kind = "mlp"
hidden = [8]
[training]
batch_size = 64
[log]
path = "{folder}/{log}"
epoch_interval_s = 0.05
"""


def trees(users: int) -> list[dict[str, Any]]:
    """Of 1 to 20 samples each."""
    random = np.random.default_rng(1)
    return [
        {
            "user": user % 40,
            "ads": [
                {"ad": f"a{random.integers(30)}", "click": int(random.random() < 0.2 + 0.6 * (user % 2))}
                for _ in range(random.integers(1, 21))
            ],
        }
        for user in range(users)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=50)


def config(folder: Path, log: str, *, grouped: bool, reads: str) -> Path:
    levels = 'levels = [{ name = "users", children = "ads" }]' if grouped else ""
    text = JOB.format(
        folder=folder,
        log=log,
        kind=reads,
        levels=levels,
        level='level = "users"' if grouped else "",
    )
    path = folder / f"{log}.toml"
    path.write_text(text)
    return path


def done(*arguments: str | Path) -> str:
    """What a command that succeeds prints."""
    ran = streamtrain(*arguments, **QUIET)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def head(log: Path) -> tuple[EpochRecord, dict[int, bytes]]:
    """The newest record, and the weights of all rows by id."""
    rows: dict[int, bytes] = {}
    last = None
    for last in recover(EpochLog.open(log)):
        found = last.tables["main"]
        rows |= {id: weights.tobytes() for id, weights in zip(found.ids.tolist(), found.weights, strict=True)}
    assert last is not None
    return last, rows


def test_grouped_files_are_learned_evaluated_replayed_and_migrated_to_flat_and_back(tmp_path: Path) -> None:
    records = trees(300)
    flat = [{"user": tree["user"], **ad} for tree in records for ad in tree["ads"]]
    write(tmp_path / "grouped.arrow", records)
    write(tmp_path / "flat.arrow", flat)
    grouped = config(tmp_path, "model", grouped=True, reads="grouped")

    done("run", grouped, "--until-end")
    found = inspected(tmp_path / "model")
    assert (found["samples"], found["bad_samples"]) == (len(flat), 0)
    assert found["positions"] == {str(tmp_path / "grouped.arrow"): len(records)}
    done("verify", tmp_path / "model")
    done("replay", tmp_path / "model", str(found["epoch"]))

    # The same samples score alike in either form, before each of them is learned.
    said = [
        json.loads(done("evaluate", path, "--json"))
        for path in (grouped, config(tmp_path, "alone", grouped=False, reads="flat"))
    ]
    assert [one["samples"] for one in said] == [len(flat)] * 2
    assert said[0]["auc"] > 0.6 and abs(said[0]["auc"] - said[1]["auc"]) < 1e-3

    before, rows = head(tmp_path / "model")
    for log, source, with_levels in (("model2", "model", False), ("model3", "model2", True)):
        # The source stays: positions in one file mean nothing in another.
        new = config(tmp_path, log, grouped=with_levels, reads="grouped")
        done("migrate", new, "--from", tmp_path / source)
        after, kept = head(tmp_path / log)
        assert kept == rows
        for name, array in before.dense.items():
            assert after.dense[name].tobytes() == array.tobytes(), name
        assert inspected(tmp_path / log)["samples"] == len(flat)
