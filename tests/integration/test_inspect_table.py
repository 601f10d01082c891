"""Looking into tables of a live model: the daemon appends, folds and collects meanwhile, and never notices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from streamtrain.cli import main
from streamtrain.config import load_job
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.recovery import recover
from streamtrain.samples.hashing import feature_id
from streamtrain.training.learner import Learner
from tests.daemon import Daemon, streamtrain, until
from tests.integration.test_daemon import samples, write
from tests.reference_analysis import applied

JOB = """
name = "live"
seed = 7
[source]
kind = "files"
paths = ["{folder}/samples*.jsonl"]
follow = {follow}
[schema]
labels = ["click"]
event_time = "time_ms"
[schema.slots]
user = {{ table = "main" }}
item = {{ type = "string", table = "main" }}
user_item = {{ kind = "cross", of = ["user", "item"], table = "hashed" }}
past = {{ kind = "sequence", field = "recent", type = "string", length_max = 5, pooling = "mean", table = "parts" }}
[tables.main]
dim = 4
[tables.hashed]
dim = 3
kind = "hash"
rows = 700
[tables.parts]
dim = 4
kind = "multi_hash"
rows = [5, 9]
combine = "multiply"
[model]
kind = "mlp"
hidden = [8]
[training]
batch_size = 32
linger_ms = 10
window_samples = 500
[log]
path = "{folder}/model"
epoch_interval_s = 0.05
base_every_epochs = 3
keep_epochs = 1
[reverse_dictionary.item]
[reverse_dictionary.past]
"""


def config(folder: Path, follow: bool) -> Path:
    path = folder / "job.toml"
    path.write_text(JOB.format(folder=folder, follow=str(follow).lower()))
    return path


def look(capsys: pytest.CaptureFixture[str], log: Path, *options: str | Path) -> dict[str, Any]:
    """In this process, so that many looks fall between two folds."""
    assert main(["inspect", str(log), *map(str, options), "--json"]) == 0, capsys.readouterr().err
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_table_is_read_whole_while_the_daemon_appends_folds_and_collects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, file = tmp_path / "model", tmp_path / "samples.jsonl"
    write(file, samples(200))
    with Daemon(config(tmp_path, follow=True)) as daemon:
        until(lambda: (log / "model.json").exists() and EpochLog.open(log).head(), "the first epochs")
        seen: list[dict[str, Any]] = []
        written = 200
        while len({found["epoch"] for found in seen}) < 4 or not _collected(log):
            write(file, samples(200, start=written, seed=written), "a")
            written += 200
            found = look(capsys, log, "--table", "main", "--epochs", "3")
            assert sum(count for *_, count in found["frequency"]["bars"]) == found["rows"]
            assert [one["epoch"] for one in found["epochs"]] == sorted(
                (one["epoch"] for one in found["epochs"]), reverse=True
            )
            look(capsys, log, "--table", "main", "--parquet", tmp_path / "live.parquet")
            seen.append(found)
            assert written < 20_000, "the daemon neither goes on nor folds"
        assert [found["epoch"] for found in seen] == sorted(found["epoch"] for found in seen)
        until(lambda: _learned(log) == written, "all samples to be learned")
        assert daemon.stop() == 0
    assert not [line for line in daemon.text.splitlines() if '"level":"error"' in line]
    assert streamtrain("verify", log).returncode == 0
    table = applied([record.tables["main"] for record in recover(EpochLog.open(log)) if record.tables])
    look(capsys, log, "--table", "main", "--parquet", tmp_path / "all.parquet")
    rows = pq.read_table(tmp_path / "all.parquet").to_pylist()
    assert {row["id"]: (row["vector"], row["count"], row["last_step"]) for row in rows} == table
    # Users are never written down, items are; every item that has a row has its value.
    values = {row["id"]: row["value"] for row in rows if row["value"] is not None}
    assert values == {feature_id("item", f"i{n}"): f"i{n}" for n in range(40)}
    assert {row["slot"] for row in rows} == {"item", None}


def _learned(log: Path) -> int:
    reader = EpochLog.open(log)
    return reader.describe(reader.head() or 0).samples_total


def _collected(log: Path) -> bool:
    return EpochLog.open(log).epochs()[0] > 0


def test_ids_that_share_rows_are_made_of_them_as_in_the_trainer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "samples.jsonl", samples(2000))
    job_path, log = config(tmp_path, follow=False), tmp_path / "model"
    with Daemon(job_path, "--until-end") as daemon:
        assert daemon.wait() == 0
    learner = Learner(load_job(job_path, {}))
    learner.restore(recover(EpochLog.open(log)), sequential=True)
    for table, slot, value, id in (
        ("parts", "past", ["i3"], feature_id("past", "i3")),
        ("hashed", "user_item", ["3", "i3"], None),
    ):
        found = look(capsys, log, "--table", table, "--slot", slot, "--id", *value)
        assert id is None or found["id"] == id
        ids = np.array([found["id"]], np.uint64)
        expected = learner.sparse.tables[table].lookup(ids)[0]
        assert np.array(found["vector"], np.float32).tobytes() == expected.tobytes()
        assert len(found["rows"]) == len(found["row_ids"])

    about = look(capsys, log, "--table", "parts")["collisions"]
    # 40 items are 40 of 45 numbers: about 16 of them are alone with theirs.
    assert (about["sizes"], about["occupied"]) == ([5, 9], [5, 9])
    assert about["known_ids"] == 40 and 0.3 < about["known_collided"] < 0.9
    about = look(capsys, log, "--table", "hashed")["collisions"]
    # 2,000 samples are some 1,260 of the 2,000 pairs.
    pairs = len({(row["user"], row["item"]) for row in samples(2000)})
    assert abs(about["ids"] / pairs - 1) < 5 * about["ids_error"] + 0.02 and "known_ids" not in about
    refused = streamtrain(
        "inspect", log, "--table", "parts", "--slot", "past", "--id", "i3", "--nearest", "3"
    )
    assert refused.returncode == 2 and "the log does not tell which ids there are" in refused.stderr
