"""What an admission filter holds, read from a log, equals what the filter itself says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamtrain.analysis import snapshot
from streamtrain.analysis.admission import waiting
from streamtrain.analysis.snapshot import open_snapshot
from streamtrain.cli import main
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.fold import fold
from streamtrain.sparse.bloom_filter import BloomAdmission
from streamtrain.sparse.candidates import ExactAdmission
from streamtrain.sparse.lifecycle_settings import CountAdmission, CountingBloomAdmission
from tests.reference_log import epoch_record, table_rows

EPOCHS = 8


def job(rule: dict[str, Any]) -> dict[str, Any]:
    return {"tables": {"user": {"dim": 3, "admission": rule}}}


def learned(
    path: Path, rule: dict[str, Any], admission: ExactAdmission | BloomAdmission
) -> tuple[EpochLog, dict[int, int]]:
    """A log in which a filter saw random ids; and how often each of those came that has no row, counted by hand."""
    log, rng, counts, previous = EpochLog.create(path, "m", job(rule)), np.random.default_rng(4), {}, ""
    for epoch in range(EPOCHS):
        ids = np.unique(rng.integers(1, 300, 60)).astype(np.uint64)
        occurrences = rng.integers(1, 3, len(ids)).astype(np.uint32)
        admitted = admission.admit(ids, occurrences, epoch)
        admission.keep()
        admission.end(epoch)
        for id, came, let_in in zip(ids.tolist(), occurrences.tolist(), admitted.tolist(), strict=True):
            counts[id] = 0 if let_in else counts.get(id, 0) + came
        record = epoch_record(epoch, previous, {"user": table_rows([1])}, filters={"user": admission.cut()})
        previous = log.append(record)
    return log, {id: count for id, count in counts.items() if count}


@pytest.mark.parametrize("mapped_max", [1, 256])
@pytest.mark.parametrize("base", [None, 4])
def test_exact_counts_are_of_the_ids_that_wait(
    base: int | None, mapped_max: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "_MAPPED_MAX", mapped_max)
    rule = {"kind": "count", "threshold": 4}
    settings = CountAdmission.model_validate(rule)
    log, counts = learned(tmp_path / "log", rule, ExactAdmission(settings, "user"))
    if base is not None:
        fold(log.path, base)
    found = waiting(log.model.job, open_snapshot(log, "user"))
    assert found is not None and found.counts is not None
    assert (found.kind, found.threshold, found.ids) == ("count", 4, len(counts))
    assert (found.counts.total, found.counts.maximum) == (sum(counts.values()), max(counts.values()))


def test_a_bloom_filter_tells_about_how_many_ids_it_holds(tmp_path: Path) -> None:
    rule = {"kind": "counting_bloom", "threshold": 4, "expected_ids": 2000}
    settings = CountingBloomAdmission.model_validate(rule)
    log, counts = learned(tmp_path / "log", rule, BloomAdmission(settings, 0, "user"))
    found = waiting(log.model.job, open_snapshot(log, "user"))
    assert found is not None and found.fill is not None and found.mistaken is not None
    assert found.ids == pytest.approx(len(counts), rel=0.15)
    assert 0 < found.fill < 0.2 and 0 <= found.mistaken < 0.01


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"kind": "count", "threshold": 4}, "ids wait\nwaiting: occurrences so far"),
        (
            {"kind": "counting_bloom", "threshold": 4, "expected_ids": 2000},
            "of the filter's counters are in use",
        ),
    ],
)
def test_inspect_tells_what_waits(
    rule: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made: ExactAdmission | BloomAdmission
    if rule["kind"] == "count":
        made = ExactAdmission(CountAdmission.model_validate(rule), "user")
    else:
        made = BloomAdmission(CountingBloomAdmission.model_validate(rule), 0, "user")
    learned(tmp_path / "log", rule, made)
    assert main(["inspect", str(tmp_path / "log"), "--table", "user"]) == 0
    out = capsys.readouterr().out
    assert f"admission  {rule['kind']}, a row from 4 occurrences on; " in out and words in out
    assert main(["inspect", str(tmp_path / "log"), "--table", "user", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["admission"]["kind"] == rule["kind"]


@pytest.mark.parametrize("rule", [{"kind": "none"}, {"kind": "probability", "p": 0.5}])
def test_rules_without_a_filter_hold_nothing(rule: dict[str, Any], tmp_path: Path) -> None:
    log = EpochLog.create(tmp_path / "log", "m", job(rule))
    log.append(epoch_record(0, "", {"user": table_rows([1])}))
    assert waiting(log.model.job, open_snapshot(log, "user")) is None
