"""The daemon against samples that would leave NaN or infinities, and the way back from a model gone astray."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.recovery import recover
from streamtrain.serving import Follower
from tests.daemon import Daemon, inspected, streamtrain
from tests.integration.test_daemon import config, samples, trainer_scores, write
from tests.reference_log import fold_dicts

QUIET = {"STREAMTRAIN__HTTP__ENABLED": "false"}


def poison(rows: list, *numbers: int) -> None:
    """Dense values that are numbers, and overflow in the model: with a label of each kind, so that one of them is wrong."""
    for number in numbers:
        rows[number] |= {"price": 3e38, "click": 0, "user": 10**6 + number}
        rows[number + 1] |= {"price": 3e38, "click": 1, "item": f"only here {number}"}


def test_huge_values_are_quarantined_training_goes_on_and_every_epoch_replays(tmp_path: Path) -> None:
    rows = samples(640)
    poison(rows, 70, 300)
    write(tmp_path / "samples.jsonl", rows)
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write('{"user": "seven", "item": "i1", "click": 1}\n')
    job = config(tmp_path)
    fast = {"STREAMTRAIN__LOG__EPOCH_INTERVAL_S": "0.05", "STREAMTRAIN__OPTIMIZER__LEARNING_RATE": "0.5"}
    with Daemon(job, "--until-end", **fast) as daemon:
        assert daemon.wait() == 0
    said = f"quarantined 32 samples, which would have left NaN or an infinity in the model: {tmp_path}/samples.jsonl"
    assert f"{said} offsets 64 to 95" in daemon.text and f"{said} offsets 288 to 319" in daemon.text
    found = inspected(tmp_path / "model")
    assert (found["samples"], found["quarantined_minibatches"], found["quarantined_samples"]) == (576, 2, 64)
    assert found["samples"] + found["quarantined_samples"] + found["bad_samples"] == 641
    assert found["positions"] == {str(tmp_path / "samples.jsonl"): 641}
    assert streamtrain("verify", tmp_path / "model").returncode == 0
    log = EpochLog.open(tmp_path / "model")
    marked = [epoch["epoch"] for epoch in found["lineage"] if epoch["quarantined_minibatches"]]
    assert sum(len(log.read(epoch).spans.quarantined) for epoch in marked) == 2
    for record in recover(log):
        arrays = [*record.dense.values(), *record.metrics.values()]
        arrays += [array for table in record.tables.values() for array in (table.weights, table.slots)]
        assert all(np.isfinite(array).all() for array in arrays)
    for epoch in {*marked, found["epoch"]}:
        replayed = streamtrain("replay", tmp_path / "model", str(epoch))
        assert replayed.returncode == 0 and "every bit is the same" in replayed.stdout, replayed.stdout


def test_one_too_many_in_a_row_stops_the_daemon_at_the_last_good_epoch(tmp_path: Path) -> None:
    rows = samples(320)
    poison(rows, *range(64, 318, 2))
    write(tmp_path / "samples.jsonl", rows)
    job = config(tmp_path)
    with Daemon(job, "--until-end", STREAMTRAIN__TRAINING__QUARANTINE_MAX="3") as daemon:
        assert daemon.wait() == 1
    assert "TooManyQuarantined: 4 minibatches in a row would have left NaN or infinities" in daemon.text
    assert "offsets 160 to 191; training.quarantine_max allows 3" in daemon.text
    assert "Traceback" not in daemon.text
    assert streamtrain("verify", tmp_path / "model").returncode == 0
    write(tmp_path / "samples.jsonl", samples(320))
    again = streamtrain("run", job, "--until-end", **QUIET)
    assert again.returncode == 0, again.stderr
    found = inspected(tmp_path / "model")
    assert found["samples"] + found["quarantined_samples"] == 320


def test_a_rollback_is_followed_by_recovery_exports_and_replay(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    write(path, samples(320))
    job = config(tmp_path, follow=False)
    assert streamtrain("run", job, "--until-end", **QUIET).returncode == 0
    good = inspected(tmp_path / "model")["epoch"]
    rows = samples(960)
    write(path, rows[:640])
    assert streamtrain("run", job, "--until-end", **QUIET).returncode == 0
    head = inspected(tmp_path / "model")["epoch"]
    refused = streamtrain("rollback", tmp_path / "model", str(head + 5))
    assert refused.returncode == 1
    assert f"the newest is {head}; it can be to epochs 0 to {head - 1}" in refused.stderr

    back = streamtrain("rollback", tmp_path / "model", str(good), "--json")
    assert back.returncode == 0, back.stderr
    assert json.loads(back.stdout)["undone_samples"] == 320
    log = EpochLog.open(tmp_path / "model")
    rolled = head + 1
    assert fold_dicts(r.tables["main"] for r in recover(log)) == fold_dicts(
        r.tables["main"] for r in recover(log, good)
    )
    replayed = streamtrain("replay", tmp_path / "model", str(rolled))
    assert replayed.returncode == 0 and "every bit is the same" in replayed.stdout

    write(path, rows)
    assert streamtrain("run", job, "--until-end", **QUIET).returncode == 0
    found = inspected(tmp_path / "model")
    assert (found["samples"], found["undone_samples"]) == (640, 320)
    assert found["positions"] == {str(path): 960}
    assert streamtrain("verify", tmp_path / "model").returncode == 0
    replayed = streamtrain("replay", tmp_path / "model", str(found["epoch"]))
    assert replayed.returncode == 0 and "every bit is the same" in replayed.stdout
    follower = Follower(tmp_path / "exports")
    assert follower.wait_for(found["epoch"], 10).lineage.samples_total == 640
    expected = trainer_scores(job, tmp_path / "model", found["epoch"], rows[-50:])
    assert np.abs(follower.predict(rows[-50:]) - expected).max() < 1e-6
