from __future__ import annotations

import io
import json
import shutil
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from streamtrain.errors import CorruptRecord, LogError
from streamtrain.log import fold as folding
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.fold import fold, main
from streamtrain.log.inspect import inspect
from streamtrain.log.record import SpanTable
from streamtrain.log.verify import verify
from tests.reference_log import append_epochs, epoch_record, fold_dicts, table_rows


@pytest.fixture
def log(tmp_path: Path) -> EpochLog:
    """Epochs 0 to 6, bases 2 and 5."""
    log = EpochLog.create(tmp_path / "log", "clicks", {})
    append_epochs(log, 6)
    fold(log.path, 2)
    fold(log.path, 5)
    return log


def test_a_sound_log_has_no_problems_and_its_bases_are_recomputed(log: EpochLog) -> None:
    seen: list[tuple[int, int]] = []
    report = verify(log.path, progress=lambda done, total: seen.append((done, total)))
    assert report.ok and report.problems == ()
    assert (report.head, report.epochs, report.bases, report.bases_refolded, report.files) == (6, 7, 2, 2, 10)
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1]
    assert report.bytes == sum(file.stat().st_size for file in log.path.rglob("*") if file.is_file())


def test_nothing_but_a_log_is_verified(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="no epoch log"):
        verify(tmp_path)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[EpochLog], object], str, str]] = {
    "a flipped bit in an epoch": (lambda log: flip(log.epoch_path(4)), "4.safetensors", "SHA-256"),
    "a flipped bit in a base": (lambda log: flip(log.base_path(5)), "5.safetensors", "SHA-256"),
    "an empty file": (lambda log: log.epoch_path(6).write_bytes(b""), "6.safetensors", "cut short"),
    "an epoch gone": (lambda log: log.epoch_path(3).unlink(), "3.safetensors", "epochs 3 to 3 are missing"),
    "epochs gone before a base": (
        lambda log: deque(map(Path.unlink, map(log.epoch_path, (4, 5, 6)))),
        "4.safetensors",
        "epochs 4 to 5 are missing",
    ),
    "a stranger's file": (
        lambda log: (log.path / "epochs" / "note.txt").write_text("x"),
        "note.txt",
        "no file of the log",
    ),
    "a stray folder": (lambda log: (log.path / "old").mkdir(), "old", "no file of the log"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_verify_names_the_file_the_fault_and_the_remedy(log: EpochLog, name: str) -> None:
    damage, file, what = DAMAGES[name]
    damage(log)
    (problem,) = verify(log.path).problems
    assert problem.file.endswith(file) and what in problem.what and problem.remedy
    assert problem.remedy not in problem.what


def test_no_way_to_recover_is_a_problem(log: EpochLog) -> None:
    for path in (log.epoch_path(0), log.base_path(2), log.base_path(5)):
        path.unlink()
    (problem,) = verify(log.path).problems
    assert "no model can be recovered" in problem.what


def test_a_base_that_is_not_the_fold_of_its_epochs_is_found(tmp_path: Path) -> None:
    log = EpochLog.create(tmp_path / "log", "m", {})
    append_epochs(log, 2)
    wrong = folding.fold_records([log.read(0), log.read(2)], log.digest(2))
    log.add_base(wrong.record, wrong.rows)
    (problem,) = verify(log.path).problems
    assert problem.what == "it is not the fold of epoch 0 and the epochs since"
    assert problem.remedy.startswith("Move it away: epoch 0")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"samples_total": 21}, "counts 21 samples in all"),
        ({"step_first": 0}, "first step is 0"),
        ({"quarantined_samples": 3}, "its spans hold 10 samples, it counts 10 learned and 3 quarantined"),
        ({"positions": {"clicks:0": 19}}, "would resume clicks:0 at offset 19"),
        (
            {"spans": SpanTable(("clicks:0",), np.array([[1, 0, 9, 20, 10]]))},
            "which was learned up to 10 before",
        ),
        (
            {"spans": SpanTable(("a", "b"), np.array([[1, 0, 0, 1, 5], [0, 1, 0, 1, 5]]))},
            "order of their steps",
        ),
    ],
)
def test_samples_lost_or_learned_twice_are_found(tmp_path: Path, changes: dict, what: str) -> None:
    log = EpochLog.create(tmp_path / "log", "m", {})
    log.append(epoch_record(2, append_epochs(log, 1), **changes))
    (problem,) = verify(log.path).problems
    assert what in problem.what


def test_verify_is_content_after_a_collection(log: EpochLog) -> None:
    log.collect(1)
    assert verify(log.path).ok


def test_inspect_counts_what_was_learned_and_the_rows_that_remain(log: EpochLog) -> None:
    rows = {"user": table_rows([1, 99], [2, 10], seed=7), "item": table_rows([5], seed=7, slots=0)}
    log.append(epoch_record(7, log.digest(6), rows, bad_samples=4))
    tables = fold_dicts(log.read(epoch).tables["user"] for epoch in range(8))
    about = inspect(log.path, lineage=2)
    assert (about["epoch"], about["samples"], about["steps"], about["bad_samples"]) == (7, 70, 7, 4)
    assert about["tables"]["user"] == {"rows": len(tables), "dim": 3, "bytes": len(tables) * (16 + 20)}
    assert about["tables"]["item"] == {"rows": 1, "dim": 3, "bytes": 28}
    assert about["positions"] == {"clicks:0": 70} and about["bases"] == [2, 5]
    assert [line["epoch"] for line in about["lineage"]] == [7, 6]
    assert about["lineage"][0]["event_time_ms"] == (7000, 7999)
    assert about["bytes"] + (log.path / "model.json").stat().st_size == verify(log.path).bytes
    json.dumps(about)


def test_inspect_of_an_empty_log(tmp_path: Path) -> None:
    about = inspect(EpochLog.create(tmp_path / "log", "m", {}).path)
    assert (about["epoch"], about["samples"], about["tables"], about["lineage"]) == (None, 0, {}, [])


def test_the_fold_command_folds_and_collects(log: EpochLog) -> None:
    out = io.StringIO()
    assert main([str(log.path), "--keep", "1", "--protect", "4"], out.write) == 0
    assert json.loads(out.getvalue()) == {"base": 6, "removed": 6}
    assert (log.epochs(), log.bases()) == ([5, 6], [5, 6])


def test_the_fold_command_reports_a_damaged_log(log: EpochLog, caplog: pytest.LogCaptureFixture) -> None:
    flip(log.epoch_path(6))
    assert main([str(log.path)]) == 1
    assert str(log.epoch_path(6)) in caplog.text


def test_a_long_log_folds_by_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EpochLog.create(tmp_path / "log", "m", {})
    append_epochs(log, 7)
    monkeypatch.setattr(folding, "SOURCES_MAX", 3)
    assert fold(log.path) == 7 and log.bases() == [2, 5, 7]
    by_rounds = log.base_path(7).read_bytes()
    shutil.rmtree(log.path / "bases")
    (log.path / "bases").mkdir()
    monkeypatch.undo()
    fold(log.path)
    assert log.base_path(7).read_bytes() == by_rounds


def test_a_table_that_changes_its_width_does_not_fold(tmp_path: Path) -> None:
    log = EpochLog.create(tmp_path / "log", "m", {})
    digest = append_epochs(log, 0)
    log.append(epoch_record(1, digest, {"user": table_rows([1], dim=4)}))
    with pytest.raises(CorruptRecord, match="tables/user/weights has rows of different widths"):
        fold(log.path)
