"""Peers that are there or not, rounds in turn, and train_step and linear from end to end on a small scale."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import linear, peers, train_step
from benchmarks.peers import PEERS, peer
from benchmarks.peers.__main__ import interpreter_for
from benchmarks.peers.rounds import Competitor, Failed
from benchmarks.step_data import StepData, Work, feature_ids, log_loss

SMALL = Work(slots=3, dim=2, rows=300, batch=50, steps=4, threads=1)


@pytest.fixture
def _without_peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers are nowhere, whatever is installed here; everything is written under a folder of the test's own."""
    monkeypatch.setattr(peers, "FOLDER", tmp_path / "peers")
    for module in (train_step, linear):
        monkeypatch.setattr(module, "FOLDER", tmp_path / "bench")


def test_the_work_is_the_same_every_time_and_each_slot_keeps_to_its_share(tmp_path: Path) -> None:
    for name in ("first", "second"):
        StepData.write(tmp_path / name, SMALL)
    first, second = StepData(tmp_path / "first"), StepData(tmp_path / "second")
    assert first.work == SMALL
    assert first.rows.tobytes() == second.rows.tobytes() and first.labels.tobytes() == second.labels.tobytes()
    assert (first.rows // SMALL.share == np.arange(3)).all()
    assert 0.05 < first.labels.mean() < 0.6
    assert len(np.unique(feature_ids(np.arange(100_000)))) == 100_000


def test_log_loss_is_the_mean_negative_log_likelihood() -> None:
    logits, labels = np.array([0.0, 2.0, -3.0], np.float32), np.array([1.0, 1.0, 0.0], np.float32)
    chances = 1 / (1 + np.exp(-logits))
    assert log_loss(logits, labels) == pytest.approx(
        -np.log([chances[0], chances[1], 1 - chances[2]]).mean(), rel=1e-6
    )


def test_a_peer_is_missing_until_it_is_installed_in_the_pinned_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "FOLDER", tmp_path)
    river = peer("river")
    assert river.missing() == "not installed: make bench-peers"
    state = river.home / peers.STATE
    state.parent.mkdir(parents=True)
    state.write_text(json.dumps({"requirements": river.requirements, "failed": "no wheel"}))
    assert river.missing() == "could not be installed: no wheel"
    state.write_text(json.dumps({"requirements": {"river.txt": "river==0.1\n"}}))
    assert "other versions" in str(river.missing())
    state.write_text(json.dumps({"requirements": river.requirements}))
    assert river.missing() is None


def test_every_requirement_of_a_peer_is_pinned_and_names_no_host() -> None:
    for found in PEERS.values():
        lines = [line for text in found.requirements.values() for line in text.splitlines()]
        assert lines and all(len(line.split("==")) == 2 and "/" not in line for line in lines), found.name


def test_a_peer_that_needs_another_python_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match=r"needs Python 2\.0: no python2\.0 on PATH"):
        interpreter_for(peers.Peer("old", python="2.0"))
    assert interpreter_for(peers.Peer("any")) == sys.executable


COMPETITOR = """
print("noise of an import")
import sys
from benchmarks.peers.rounds import serve

def learn(first, end):
    print("noise of a library")
    if end > 9:
        sys.exit("too much")
    return {"loss": first + end}

serve(learn, {"version": "1"})
"""


def test_a_competitor_answers_round_after_round_and_its_end_is_told_with_what_it_said(tmp_path: Path) -> None:
    command = [sys.executable, "-c", COMPETITOR]
    with Competitor("it", command, {}, tmp_path / "log") as competitor:
        assert competitor.about == {"version": "1"}
        answers = [competitor.learn(0, 2), competitor.learn(2, 4)]
        assert [answer["loss"] for answer in answers] == [2, 6]
        assert all(answer["seconds"] >= 0 and answer["processor_s"] >= 0 for answer in answers)
        with pytest.raises(Failed, match=r"(?s)it ended with 1:.*too much"):
            competitor.learn(4, 10)


def test_rates_are_medians_with_quartiles_and_the_floating_point_work_is_that_of_three_products() -> None:
    played = [{"seconds": s, "processor_s": 2 * s} for s in (1.0, 2.0, 4.0)]
    found = train_step.rates(400, played)
    assert found == {
        "samples_per_s": 200,
        "low": 150,
        "high": 300,
        "best": 400,
        "samples_per_core_s": 100,
    }
    assert train_step.dense_flop(Work(1, 10, 10, 1, 1, 1)) == 6 * (10 * 200 + 200 * 80 + 80)


@pytest.mark.parametrize(
    ("losses", "fault"),
    [
        ({"a": [0.7, 0.6], "b": [0.7, 0.61]}, ""),
        ({"a": [0.7, 0.7]}, "a has learned nothing"),
        ({"a": [0.7, 0.5], "b": [0.7, 0.6]}, "not the same work"),
    ],
)
def test_whoever_learns_nothing_or_something_else_fails_the_benchmark(
    losses: dict[str, list[float]], fault: str
) -> None:
    found = train_step.disagreement(losses)
    assert found.startswith(fault) and bool(found) == bool(fault)


def test_vowpal_wabbit_and_we_are_given_the_same_samples(tmp_path: Path) -> None:
    StepData.write(tmp_path, SMALL)
    table = linear.table_of(StepData(tmp_path))
    lines = linear.vw_text(table.to_batches()[0]).decode().splitlines()
    assert len(lines) == table.num_rows == SMALL.steps * SMALL.batch
    for line, row in zip(lines, table.to_pylist(), strict=True):
        label = "1" if row["y"] else "-1"
        assert line == f"{label} |a {row['slot_0']} |b {row['slot_1']} |c {row['slot_2']}"


@pytest.mark.usefixtures("_without_peers")
def test_train_step_learns_and_names_the_peers_that_are_missing(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"rounds": 2, "steps": 60, "rows": 1000, "batch": 256, "slots": 8, "dim": 2}
    options = train_step.options_of([f"--{name}={size}" for name, size in sizes.items()])
    found = train_step.measure(options)
    assert set(found["missing"]) == {"torch", "tfra"} and not any(name.startswith("ratio") for name in found)
    assert [row["name"] for row in found["competitors"]] == ["streamtrain"]
    assert found["losses"][1]["streamtrain"] < found["losses"][0]["streamtrain"]
    assert found["roofline_share"] > 0 and set(found["stage_ms"]) >= {"forward", "dense", "backward"}
    assert "WITHOUT torch: not installed" in capsys.readouterr().err


@pytest.mark.usefixtures("_without_peers")
def test_linear_learns_every_sample_durably_and_names_the_peers_that_are_missing() -> None:
    options = linear.options_of(
        ["--samples=3000", "--rounds=1", "--batch=256", "--source", "parquet", "jsonl"]
    )
    found = linear.measure(options)
    assert set(found["missing"]) == {"vowpalwabbit", "river"}
    parquet, lines = found["competitors"]
    assert parquet["samples"] == lines["samples"] == 3000 and parquet["epochs"] >= 1
    assert parquet["log_loss"] == lines["log_loss"] < 0.7


@pytest.mark.parametrize("module", ["train_step", "linear"])
def test_a_command_line_that_makes_no_sense_is_refused(module: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", "--rounds", "0"],
        capture_output=True,
        text=True,
        env=os.environ,
        check=False,
    )
    assert run.returncode == 2 and "--rounds 0: must be at least 1" in run.stderr
