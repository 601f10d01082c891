"""A living model goes on under other slots, tables, dims and optimizers, and its followers with it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamtrain.config import load_job
from streamtrain.errors import EpochMissing, LogError
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.files import Files
from streamtrain.log.fold import fold
from streamtrain.log.readers import Holding
from streamtrain.log.recovery import recover
from streamtrain.log.verify import verify
from streamtrain.migration.migrate import migrate, plan
from streamtrain.serving import Follower
from tests.daemon import Daemon, inspected, streamtrain
from tests.integration.test_daemon import JOB, config, samples, trainer_scores, write

QUIET = {"STREAMTRAIN__HTTP__ENABLED": "false"}

CHANGED = (
    JOB.replace(
        'user_item = {{ kind = "cross", of = ["user", "item"] }}\n', 'city = {{ table = "places" }}\n'
    )
    .replace(
        'user = {{}}\nitem = {{ type = "string" }}',
        'item = {{ type = "string", table = "main" }}\nuser = {{ table = "main" }}',
    )
    .replace("dim = 4\n", 'dim = 6\n[tables.main.optimizer]\nkind = "adam"\n[tables.places]\ndim = 2\n')
    .replace('"{folder}/model"', '"{folder}/model2"')
)


def new_config(folder: Path, text: str = CHANGED) -> Path:
    path = folder / "new.toml"
    path.write_text(text.format(folder=folder, follow="false"))
    return path


def learn(job: Path) -> None:
    with Daemon(job, "--until-end", **QUIET) as daemon:
        assert daemon.wait() == 0, daemon.text[-3000:]


def with_cities(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"city": row["user"] % 5} for row in rows]


def test_a_model_goes_on_under_other_settings_and_its_follower_goes_over(tmp_path: Path) -> None:
    rows = with_cities(samples(1600))
    write(tmp_path / "samples.jsonl", rows[:1000])
    old, new = config(tmp_path), new_config(tmp_path)
    learn(old)
    follower = Follower(tmp_path / "exports")
    follower.poll()
    before, first = follower.predict(rows[:8]), follower.model
    tried = streamtrain("migrate", new, "--from", tmp_path / "model", "--dry-run")
    assert tried.returncode == 0 and "nothing was written (--dry-run)" in tried.stdout, tried.stderr
    assert not (tmp_path / "model2").exists()
    ran = streamtrain("migrate", new, "--from", tmp_path / "model", "--json")
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert {t["table"]: t["fate"] for t in said["tables"]} == {"main": "changed", "places": "new"}
    assert said["dense"]["mapped"] == ["layers/0/kernel"] and said["dense"]["begun"] == []
    found = inspected(tmp_path / "model2")
    assert (found["epoch"], found["samples"], found["bad_samples"]) == (0, 1000, 0)
    assert found["migrated"][0]["model_id"] == inspected(tmp_path / "model")["model_id"]
    told = streamtrain("inspect", tmp_path / "model2").stdout
    assert "migrated   from model" in told and "\n  tables.main.dim: 4 -> 6\n" in told
    assert found["tables"]["main"]["rows"] == inspected(tmp_path / "model")["tables"]["main"]["rows"]

    # The old follower serves what it has until the new model's base is there, then that.
    assert not follower.poll() and np.array_equal(follower.predict(rows[:8]), before)
    write(tmp_path / "samples.jsonl", rows[1000:], "a")
    learn(new)
    found = inspected(tmp_path / "model2")
    assert (found["samples"], found["positions"]) == (1600, {str(tmp_path / "samples.jsonl"): 1600})
    assert found["tables"]["places"]["rows"] == 5
    moved = follower.poll()
    assert moved and follower.status.last_error is None, follower.status
    assert follower.model is not None and first is not None and follower.model.model_id != first.model_id
    scores = trainer_scores(new, tmp_path / "model2", found["epoch"], rows[-200:])
    assert np.abs(follower.predict(rows[-200:]) - scores).max() < 1e-6
    late = Follower(tmp_path / "exports")
    late.poll()
    assert np.array_equal(late.predict(rows[:50]), follower.predict(rows[:50]))

    assert streamtrain("verify", tmp_path / "model2").returncode == 0
    replayed = streamtrain("replay", tmp_path / "model2", "1")
    assert "every bit is the same" in replayed.stdout, replayed.stdout + replayed.stderr
    # The old log is as it was: going back is running the old job.
    assert inspected(tmp_path / "model")["samples"] == 1000
    refused = streamtrain("migrate", new, "--from", tmp_path / "model")
    assert refused.returncode == 1 and "is there already; set log.path to a directory" in refused.stderr


def test_what_was_learned_still_counts(tmp_path: Path) -> None:
    """A slot more and a larger dim, all of it beginning at zero: scores are those of the old model."""
    rows = samples(1000)
    write(tmp_path / "samples.jsonl", rows)
    zeros = JOB.replace("dim = 4\n", 'dim = 4\ninit = {{ kind = "constant", value = 0.0 }}\n')
    old = config(tmp_path, text=zeros)
    learn(old)
    text = zeros.replace("dim = 4", "dim = 9").replace("user = {{}}", "user = {{}}\nextra = {{}}")
    new = new_config(tmp_path, text.replace('"{folder}/model"', '"{folder}/model2"'))
    last = inspected(tmp_path / "model")["epoch"]
    assert streamtrain("migrate", new, "--from", tmp_path / "model", "--epoch", str(last)).returncode == 0
    before = trainer_scores(old, tmp_path / "model", last, rows[:300])
    after = trainer_scores(new, tmp_path / "model2", 0, rows[:300])
    assert before.std() > 0.02 and np.allclose(before, after, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[[exports]]", "[[exports]]"), "holds this very model: there is nothing to migrate"),
        (('labels = ["click"]', 'labels = ["click", "buy"]'), "cannot become ['click', 'buy']"),
        (("samples*.jsonl", "others*.jsonl"), "source.paths: the model's positions are of"),
    ],
)
def test_what_cannot_be_shared_is_refused_in_words(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    write(tmp_path / "samples.jsonl", samples(64))
    learn(config(tmp_path))
    moved = JOB.replace('"{folder}/model"', '"{folder}/model2"').replace(*change)
    if "labels" in change[0] or "samples" in change[0]:
        moved = moved.replace("hidden = [16]", "hidden = [8]")
    refused = streamtrain("migrate", new_config(tmp_path, moved), "--from", tmp_path / "model")
    assert refused.returncode == 2 and message in refused.stderr and "Traceback" not in refused.stderr
    assert sorted(p.name for p in tmp_path.iterdir() if "model" in p.name) == ["model"]


class _Full(Files):
    def rename(self, source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")


def test_an_epoch_of_which_only_a_base_is_left_is_refused_for_its_positions_name_no_topic(
    tmp_path: Path,
) -> None:
    write(tmp_path / "samples.jsonl", with_cities(samples(100)))
    for _ in range(2):
        learn(config(tmp_path))
        base = fold(tmp_path / "model")
        write(tmp_path / "samples.jsonl", with_cities(samples(100)), "a")
    log = EpochLog.open(tmp_path / "model")
    log.collect(1, holding=Holding(lease_s=0.0))  # the daemons' exporter is registered
    first, *_ = log.bases()
    assert log.epochs() == [base] and first < base
    job = load_job(new_config(tmp_path))
    with pytest.raises(EpochMissing, match=f"migrate from epoch {base} or a later one"):
        plan(job, log, first)
    for missing in (-1, base + 1):
        with pytest.raises(
            EpochMissing, match=f"has no epoch {missing}; it has epochs {base} to {base}: choose"
        ):
            plan(job, log, missing)
    assert plan(job, log, base).record.notes == log.read(base).notes


def test_a_migration_that_fails_leaves_nothing_that_a_daemon_would_take_for_a_new_model(
    tmp_path: Path,
) -> None:
    write(tmp_path / "samples.jsonl", samples(64))
    learn(config(tmp_path))
    job, log = load_job(new_config(tmp_path), {}), EpochLog.open(tmp_path / "model")
    with pytest.raises(LogError, match="model2"):
        migrate(job, log, plan(job, log), "a test", _Full())
    assert sorted(p.name for p in tmp_path.iterdir() if "model" in p.name) == ["model"]


# Each child is a copy of a process that has planned the migration, and dies by a signal of its own before its nth change.
KILLED = """
import os, signal, sys
from pathlib import Path
from streamtrain.config import load_job
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.files import Files
from streamtrain.migration.migrate import migrate, plan
from tests.unit.log.test_faults import MUTATIONS

class Deadly(Files):
    left = 0
    def __getattribute__(self, name):
        if name in MUTATIONS:
            if Deadly.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            Deadly.left -= 1
        return super().__getattribute__(name)

job, log = load_job(sys.argv[1], {}), EpochLog.open(sys.argv[2])
planned = plan(job, log)
while True:
    child = os.fork()
    if not child:
        migrate(job, log, planned, "a test", Deadly())
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(code, Path(job.log.path).exists(), flush=True)
    if code == 0 or sys.stdin.readline() != "on\\n":
        break
    Deadly.left += 1
"""


def test_a_migration_killed_at_any_call_leaves_a_whole_model_or_none(tmp_path: Path) -> None:
    write(tmp_path / "samples.jsonl", samples(64))
    learn(config(tmp_path))
    job, before = new_config(tmp_path), inspected(tmp_path / "model")
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(job), str(tmp_path / "model")],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        seen = []
        while True:
            code, there = process.stdout.readline().split()
            seen.append((int(code), there == "True"))
            made = EpochLog.open(tmp_path / "model2") if seen[-1][1] else None
            assert made is None or (made.head() == 0 and verify(made.path).ok)
            if code == "0":
                break
            if made is not None:
                shutil.rmtree(made.path)
            process.stdin.write("on\n")
            process.stdin.flush()
    assert seen[-1] == (0, True) and len(seen) > 10
    assert {code for code, _ in seen[:-1]} == {-signal.SIGKILL} and [there for _, there in seen[:2]] == [
        False
    ] * 2
    # Only the sync of the directory comes behind the rename that puts the log in place.
    assert [there for _, there in seen].count(True) == 2
    assert inspected(tmp_path / "model") == before
    assert inspected(tmp_path / "model2")["samples"] == 64


def test_ids_go_on_waiting_for_admission_where_its_rule_stays_and_begin_anew_where_it_changes(
    tmp_path: Path,
) -> None:
    write(tmp_path / "samples.jsonl", samples(200))
    waiting = JOB.replace("dim = 4\n", 'dim = 4\nadmission = {{ kind = "count", threshold = 4 }}\n')
    learn(config(tmp_path, text=waiting))
    log = EpochLog.open(tmp_path / "model")
    moved = waiting.replace('"{folder}/model"', '"{folder}/model2"').replace("dim = 4\n", "dim = 5\n")
    kept_on = plan(load_job(new_config(tmp_path, moved), {}), log)
    record = kept_on.record
    counts = fold_filters(log)
    assert counts, "some ids are still waiting"
    kept = record.filters["main"]
    assert dict(zip(kept.ids.tolist(), map(bytes, kept.values), strict=True)) == counts
    stricter = load_job(new_config(tmp_path, moved.replace("threshold = 4", "threshold = 5")), {})
    for job in (stricter, load_job(new_config(tmp_path, moved.replace("seed = 7", "seed = 8")), {})):
        begun = plan(job, log)
        assert "main" not in begun.record.filters
        assert len(begun.record.tables["main"].ids) == len(record.tables["main"].ids)
        assert [kept_on.tables[0].filter, begun.tables[0].filter] == ["kept", "begun"]


def fold_filters(log: EpochLog) -> dict[int, bytes]:
    """What the filter of the table holds at the head, from the records alone."""
    found: dict[int, bytes] = {}
    for record in recover(log):
        if (rows := record.filters.get("main")) is not None:
            for gone in rows.tombstones.tolist():
                found.pop(gone, None)
            found |= zip(rows.ids.tolist(), map(bytes, rows.values), strict=True)
    return found
