"""The daemon end to end on files: learn, commit, stop, go on, replay, export, serve; and what its users see when not."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamtrain.config import load_job
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.recovery import recover
from streamtrain.samples.decoder import Decoder
from streamtrain.serving import Follower
from streamtrain.training.learner import Learner
from streamtrain.training.prequential import sigmoid
from tests.daemon import Daemon, inspected, learned, streamtrain, until

JOB = """
name = "e2e"
seed = 7
[source]
kind = "files"
paths = ["{folder}/samples*.jsonl"]
follow = {follow}
[schema]
labels = ["click"]
event_time = "time_ms"
[schema.slots]
user = {{}}
item = {{ type = "string" }}
user_item = {{ kind = "cross", of = ["user", "item"] }}
recent = {{ kind = "sequence", shares = "item", type = "string", length_max = 5, pooling = "mean" }}
price = {{ kind = "dense" }}
[tables.main]
dim = 4
[model]
kind = "mlp"
hidden = [16]
[training]
batch_size = 32
linger_ms = 20
window_samples = 500
[log]
path = "{folder}/model"
epoch_interval_s = 0.1
[[exports]]
kind = "deltas"
path = "{folder}/exports"
"""


def samples(count: int, start: int = 0, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    made = []
    for i in range(start, start + count):
        user, item = int(rng.integers(50)), int(rng.integers(40))
        click = int(rng.random() < (0.9 if (user + item) % 2 else 0.1))
        made.append(
            {
                "user": user,
                "item": f"i{item}",
                "recent": [f"i{x}" for x in rng.integers(40, size=rng.integers(0, 7))],
                "price": float(rng.normal()),
                "click": click,
                "time_ms": 1_700_000_000_000 + i * 10,
            }
        )
    return made


def write(path: Path, rows: list[dict[str, Any]], mode: str = "w") -> None:
    with path.open(mode) as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def config(folder: Path, follow: bool = False, text: str = JOB) -> Path:
    path = folder / "job.toml"
    path.write_text(text.format(folder=folder, follow=str(follow).lower()))
    return path


def trainer_scores(job_path: Path, log_path: Path, epoch: int, rows: list[dict[str, Any]]) -> np.ndarray:
    """Probabilities by the trainer's own halves, restored at `epoch`."""
    job = load_job(job_path, {})
    learner = Learner(job)
    learner.restore(recover(EpochLog.open(log_path), upto=epoch), sequential=True)
    batch = Decoder(job.sample_schema).decode_samples(rows)
    scores = []
    for start in range(0, batch.size, 32):
        part = batch.slice(start, min(start + 32, batch.size))
        padded = learner.dense.bucket(part.size)
        activations = learner.sparse.score(part, padded)
        dense = np.zeros((padded, part.dense.shape[1]), np.float32)
        dense[: part.size] = part.dense
        scores.append(learner.dense.predict(activations.pooled, activations.sequences, dense)[: part.size])
    return sigmoid(np.concatenate(scores))


def test_a_finite_source_is_learned_whole_and_the_follower_scores_as_the_trainer(tmp_path: Path) -> None:
    rows = samples(3000)
    write(tmp_path / "samples-1.jsonl", rows[:1800])
    write(tmp_path / "samples-2.jsonl", rows[1800:])
    job = config(tmp_path)
    with Daemon(job, "--until-end") as daemon:
        assert daemon.wait() == 0
    assert "3000 samples learned in all" in daemon.text
    found = inspected(tmp_path / "model")
    assert found["samples"] == 3000
    assert sum(epoch["samples"] for epoch in found["lineage"]) == 3000
    assert found["positions"] == {str(tmp_path / "samples-2.jsonl"): 1200}
    assert found["watermark_ms"] == rows[-1]["time_ms"]

    verified = streamtrain("verify", tmp_path / "model")
    assert verified.returncode == 0, verified.stdout

    follower = Follower(tmp_path / "exports")
    version = follower.wait_for(found["epoch"], 10)
    assert version.lineage.samples_total == 3000
    unseen = [*rows[-100:], {"user": 10**9, "item": "never", "click": 0, "time_ms": 0}, {}]
    expected = trainer_scores(job, tmp_path / "model", found["epoch"], unseen)
    assert np.abs(follower.predict(unseen) - expected).max() < 1e-6

    again = streamtrain("run", job, "--until-end", STREAMTRAIN__HTTP__ENABLED="false")
    assert again.returncode == 0 and "3000 samples learned in all" in again.stderr


def test_every_epoch_replays_to_the_same_bits_even_over_kills(tmp_path: Path) -> None:
    write(tmp_path / "samples.jsonl", samples(6000))
    job = config(tmp_path)
    slow = {"STREAMTRAIN__LOG__EPOCH_INTERVAL_S": "0.05", "STREAMTRAIN__TRAINING__BATCH_SIZE": "16"}
    for _ in range(2):
        with Daemon(job, "--until-end", **slow) as daemon:
            before = _head(tmp_path / "model")
            until(lambda: _head(tmp_path / "model") >= before + 2 or not daemon.running, "two more epochs")  # noqa: B023
            daemon.kill()
    with Daemon(job, "--until-end", **slow) as daemon:
        assert daemon.wait() == 0
    found = inspected(tmp_path / "model")
    assert found["samples"] == 6000
    assert len({epoch["writer"] for epoch in found["lineage"]}) >= 2
    for epoch in sorted({1, 2, found["epoch"] // 2, found["epoch"]}):
        replayed = streamtrain("replay", tmp_path / "model", str(epoch))
        assert replayed.returncode == 0, replayed.stdout + replayed.stderr
        assert "every bit is the same" in replayed.stdout


def _head(log: Path) -> int:
    return len(list((log / "epochs").glob("*.safetensors"))) - 1 if (log / "epochs").exists() else -1


def test_sigterm_commits_what_was_learned_and_exits_with_success(tmp_path: Path) -> None:
    write(tmp_path / "samples.jsonl", samples(500))
    job = config(tmp_path, follow=True)
    with Daemon(job) as daemon:
        until(lambda: learned(tmp_path / "model") == 500, "500 samples to be committed")
        assert daemon.get("/livez")[0] == 200
        assert daemon.get("/readyz") == (200, '{"ready": true, "phase": "learning"}')
        metrics = daemon.get("/metrics")[1]
        assert "streamtrain_samples_total 500.0" in metrics
        assert "streamtrain_compilations_after_warm_up_total 0.0" in metrics
        assert 'streamtrain_prequential{label="click",measure="auc",over="total"}' in metrics
        write(tmp_path / "samples.jsonl", samples(333, 500, seed=1), "a")
        until(lambda: learned(tmp_path / "model") == 833, "what the file grew by")
        assert daemon.stop() == 0
    assert inspected(tmp_path / "model")["samples"] == 833


def test_a_poisoned_record_is_named_and_passed_over(tmp_path: Path) -> None:
    rows = samples(200)
    lines = [json.dumps(row) for row in rows]
    lines[77] = '{"user": "seven", "item": "i1", "click": 1}'
    lines[123] = '{"user": 7, "item": "i1", "click": NaN}'
    (tmp_path / "samples.jsonl").write_text("\n".join(lines) + "\n")
    with Daemon(config(tmp_path), "--until-end") as daemon:
        assert daemon.wait() == 0
    assert f"{tmp_path}/samples.jsonl offset 77: field 'user'" in daemon.text
    assert "offset 123" in daemon.text
    found = inspected(tmp_path / "model")
    assert (found["samples"], found["bad_samples"]) == (198, 2)


def test_a_schema_that_does_not_fit_stops_the_daemon_with_words(tmp_path: Path) -> None:
    write(tmp_path / "samples.jsonl", samples(2000))
    job = config(
        tmp_path,
        text=JOB.replace("user = {{}}", 'user = {{ type = "string" }}').replace(
            'user_item = {{ kind = "cross", of = ["user", "item"] }}', ""
        ),
    )
    with Daemon(job, "--until-end") as daemon:
        assert daemon.wait() == 1
    assert "TooManyBadSamples" in daemon.text
    assert "field 'user'" in daemon.text and "correct [schema] or the producer" in daemon.text
    assert "Traceback" not in daemon.text


def test_a_second_daemon_on_the_same_log_is_told_who_holds_it(tmp_path: Path) -> None:
    write(tmp_path / "samples.jsonl", samples(100))
    job = config(tmp_path, follow=True)
    with Daemon(job) as first:
        first.until_says("learning: epoch")
        second = streamtrain("run", job, STREAMTRAIN__HTTP__ENABLED="false")
        assert second.returncode == 3
        assert f"Fenced: another daemon (pid {first.process.pid}" in second.stderr  # type: ignore[union-attr]
        assert first.stop() == 0


def test_a_stolen_epoch_fences_the_daemon_even_without_the_lock(tmp_path: Path) -> None:
    """The locks of log and exports are a courtesy; the compare-and-swap is the fence."""
    write(tmp_path / "samples.jsonl", samples(100))
    job = config(tmp_path, follow=True, text=JOB.split("[[exports]]")[0])
    with Daemon(job) as first:
        until(lambda: learned(tmp_path / "model") == 100, "100 samples")
        first.signal(signal.SIGSTOP)
        (tmp_path / "model" / "LOCK").unlink()
        with Daemon(job) as second:
            write(tmp_path / "samples.jsonl", samples(100, 100, seed=1), "a")
            until(lambda: learned(tmp_path / "model") == 200, "the second daemon to learn")
            first.signal(signal.SIGCONT)
            write(tmp_path / "samples.jsonl", samples(100, 200, seed=2), "a")
            until(lambda: learned(tmp_path / "model") == 300, "the second daemon to go on")
            assert first.wait() == 3
            assert "Fenced" in first.text
            assert second.stop() == 0
    assert streamtrain("verify", tmp_path / "model").returncode == 0
    assert inspected(tmp_path / "model")["samples"] == 300


def test_a_changed_model_is_refused_with_the_difference(tmp_path: Path) -> None:
    write(tmp_path / "samples.jsonl", samples(100))
    assert (
        streamtrain("run", config(tmp_path), "--until-end", STREAMTRAIN__HTTP__ENABLED="false").returncode
        == 0
    )
    changed = streamtrain(
        "run", config(tmp_path), STREAMTRAIN__TABLES__MAIN__DIM="8", STREAMTRAIN__HTTP__ENABLED="false"
    )
    assert changed.returncode == 2
    assert "tables.main.dim: the log has 4, the job says 8" in changed.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_pauses_training_and_loses_nothing(tmp_path: Path) -> None:
    import subprocess

    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.decode().strip()}")
    try:
        ballast = small / "ballast"
        write(tmp_path / "samples.jsonl", samples(200))
        job = config(tmp_path, follow=True)
        with Daemon(job, STREAMTRAIN__LOG__PATH=str(small / "model")) as daemon:
            until(lambda: _head(small / "model") >= 1, "an epoch")
            with ballast.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(b"x" * 4096)
                except OSError:
                    pass
            write(tmp_path / "samples.jsonl", samples(400, 200, seed=3), "a")
            daemon.until_says("training pauses")
            assert "streamtrain_log_full 1.0" in daemon.get("/metrics")[1]
            ballast.unlink()
            daemon.until_says("there is room again")
            until(lambda: learned(small / "model") == 600, "the rest to be learned")
            assert daemon.stop() == 0
        assert streamtrain("verify", small / "model").returncode == 0
    finally:
        subprocess.run(["umount", "-l", small], check=False)
