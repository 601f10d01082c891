"""Rolling back: what the appended epoch holds, what it refuses, and that everyone who reads the log understands it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamtrain.cli import main
from streamtrain.errors import CorruptRecord, EpochMissing, Fenced
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.fold import fold
from streamtrain.log.inspect import inspect
from streamtrain.log.recovery import recover
from streamtrain.log.rollback import earliest, rollback
from streamtrain.log.verify import verify
from tests.reference_log import append_epochs, epoch_record, fold_dicts, table_rows


@pytest.fixture
def log(tmp_path: Path) -> EpochLog:
    """Epochs 0 to 7: in each the rows 1, 2 and one of its own."""
    log = EpochLog.create(tmp_path / "log", "clicks", {})
    append_epochs(log, 7)
    return log


def table(log: EpochLog, upto: int | None = None, name: str = "user") -> dict:
    return fold_dicts(record.tables[name] for record in recover(log, upto) if name in record.tables)


def test_the_head_is_the_earlier_model_to_the_bit_and_everything_is_still_there(log: EpochLog) -> None:
    before, then, last = table(log, 3), log.read(3), log.read(7)
    record = rollback(log, 3, writer="me")
    assert (log.head(), log.epochs()) == (8, list(range(9)))
    assert table(log) == before and table(log, 7) != before
    for kind in ("dense", "metrics"):
        for name, array in getattr(log.read(8), kind).items():
            assert array.tobytes() == getattr(then, kind)[name].tobytes()
    assert record.tables["user"].ids.tolist() == [1, 2]
    assert record.tables["user"].tombstones.tolist() == [14, 15, 16, 17]
    assert (record.samples, record.samples_total, record.undone_samples) == (0, 30, 40)
    assert (record.restores, record.watermark_ms, record.writer) == (3, then.watermark_ms, "me")
    assert record.step_first == record.step_next == last.step_next
    assert "from epoch 7 to epoch 3" in record.notes["rollback"]
    assert verify(log.path).ok


@pytest.mark.parametrize(("positions", "offset"), [("current", 70), ("epoch", 30)])
def test_reading_goes_on_where_the_operator_chose(log: EpochLog, positions: str, offset: int) -> None:
    rollback(log, 3, positions)  # type: ignore[arg-type]
    assert log.read(8).positions == {"clicks:0": offset}
    spans = replace(epoch_record(1).spans, spans=np.array([[7, 0, offset, offset + 10, 10]]))
    following: dict[str, Any] = {"samples_total": 40, "positions": {"clicks:0": offset + 10}, "spans": spans}
    log.append(epoch_record(9, log.digest(8), step_first=7, step_next=8, **following))
    assert verify(log.path).ok
    fold(log.path)
    assert verify(log.path).ok
    assert log.read_base(9).samples == log.read_base(9).samples_total == 40
    about = inspect(log.path)
    assert (about["samples"], about["undone_samples"]) == (40, 40)
    assert [line["restores"] for line in about["lineage"][:3]] == [None, 3, None]


Rows = st.dictionaries(st.integers(0, 7), st.booleans(), max_size=5)


@settings(max_examples=60, deadline=None)
@given(st.lists(Rows, min_size=2, max_size=8), st.data())
def test_whatever_was_written_and_removed_the_rows_are_those_of_the_epoch(
    tmp_path_factory: pytest.TempPathFactory, epochs: list[dict[int, bool]], data: st.DataObject
) -> None:
    log = EpochLog.create(tmp_path_factory.mktemp("log"), "m", {})
    for epoch, changes in enumerate(epochs):
        written = [id_ for id_, kept in changes.items() if kept]
        removed = [id_ for id_, kept in changes.items() if not kept]
        previous = log.digest(epoch - 1) if epoch else ""
        log.append(epoch_record(epoch, previous, {"user": table_rows(written, removed, seed=epoch)}))
    back = data.draw(st.integers(0, len(epochs) - 2))
    if data.draw(st.booleans()):
        fold(log.path, data.draw(st.integers(0, len(epochs) - 1)))
    before, now = table(log, back), table(log)
    record = rollback(log, back)
    assert table(log) == before
    assert set(record.tables["user"].tombstones.tolist()) == now.keys() - before.keys()
    assert verify(log.path).ok
    # And back again: a rollback is an epoch like any other.
    again = rollback(log, len(epochs) - 1)
    assert table(log) == now and again.undone_samples == -record.undone_samples
    assert verify(log.path).ok


def test_a_table_that_came_later_is_emptied(log: EpochLog) -> None:
    log.append(epoch_record(8, log.digest(7), {"late": table_rows([5], slots=0)}))
    rollback(log, 6)
    assert table(log, name="late") == {} and verify(log.path).ok


def test_what_was_collected_cannot_be_returned_to_and_the_error_says_what_can(log: EpochLog) -> None:
    assert earliest(log) == 0
    fold(log.path, 3)
    fold(log.path, 6)
    log.collect(keep_epochs=4)
    assert (log.epochs(), log.bases(), earliest(log)) == ([3, 4, 5, 6, 7], [3, 6], 3)
    for epoch in (-1, 2):
        with pytest.raises(
            EpochMissing, match=rf"epoch {epoch}: what that takes was .* it can be to epochs 3 to 6\."
        ):
            rollback(log, epoch)
    for epoch in (7, 8):
        with pytest.raises(EpochMissing, match="the newest is 7; it can be to epochs 3 to 6"):
            rollback(log, epoch)
    before = table(log, 3)
    assert rollback(log, 3).notes and table(log) == before and verify(log.path).ok


def test_with_the_head_in_a_base_alone_nothing_can_be_returned_to(log: EpochLog) -> None:
    fold(log.path)
    for epoch in range(8):
        log.epoch_path(epoch).unlink()
    with pytest.raises(EpochMissing, match="it can be to nothing"):
        rollback(log, 6)


def test_an_empty_log_says_so(tmp_path: Path) -> None:
    with pytest.raises(EpochMissing, match="is empty"):
        rollback(EpochLog.create(tmp_path / "log", "m", {}), 0)


def test_a_running_daemon_is_told_of_and_nothing_is_appended(log: EpochLog) -> None:
    with EpochLog.open(log.path).lock(), pytest.raises(Fenced, match="another daemon"):
        rollback(log, 3)
    assert log.head() == 7


def test_damage_on_the_way_is_named_and_nothing_is_appended(log: EpochLog) -> None:
    data = bytearray(log.epoch_path(5).read_bytes())
    data[-1] ^= 1
    log.epoch_path(5).write_bytes(data)
    with pytest.raises(CorruptRecord, match=str(log.epoch_path(5))):
        rollback(log, 3)
    assert log.head() == 7


def test_a_rollback_that_restores_something_else_is_a_problem(log: EpochLog) -> None:
    record = rollback(log, 3)
    log.epoch_path(8).unlink()
    rows = replace(record.tables["user"], weights=record.tables["user"].weights + 1)
    EpochLog.open(log.path).append(replace(record, tables={"user": rows}))
    (problem,) = verify(log.path).problems
    assert problem.what == "it is a rollback, but not to what epoch 3 was"


def test_the_command_says_what_it_did_and_what_the_log_says_after(
    log: EpochLog, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rollback", str(log.path), "5"]) == 0
    said = capsys.readouterr().out
    assert said == (
        "epoch 8 restores epoch 5: 50 samples learned, 20 undone; the next run reads on from where it stands now\n"
    )
    assert main(["rollback", str(log.path), "2", "--positions", "epoch", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["epoch"], found["restores"], found["undone_samples"]) == (9, 2, 30)
    assert found["positions"] == {"clicks:0": 20} and found["rows_removed"] == {"user": 3}
    assert main(["inspect", str(log.path)]) == 0
    said = capsys.readouterr().out
    assert "undone     50 samples, by rollbacks" in said
    assert " kB, restores epoch 2, 30 samples undone" in said
    assert main(["rollback", str(log.path), "9"]) == 1
    assert "EpochMissing" in capsys.readouterr().err
