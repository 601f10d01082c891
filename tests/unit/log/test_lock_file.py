"""The courtesy of the lock: between processes, and taken from a holder that was found dead."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from streamtrain.errors import Fenced
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.lock_file import LockFile, LockHeld


def test_a_lock_that_is_held_is_refused_by_its_holders_name_until_it_is_let_go(tmp_path: Path) -> None:
    path = tmp_path / "LOCK"
    lock, replaced = LockFile.take(path)
    assert (replaced, lock.held) == ("", True)
    with pytest.raises(LockHeld, match=r"pid \d+, host "):
        LockFile.take(path)
    lock.close()
    again, replaced = LockFile.take(path)
    assert replaced == ""
    again.close()


def test_a_lock_that_is_replaced_is_held_by_the_one_who_replaced_it_alone(tmp_path: Path) -> None:
    path = tmp_path / "LOCK"
    paused, _ = LockFile.take(path)
    successor, replaced = LockFile.take(path, replace=True)
    assert "pid" in replaced
    assert (paused.held, successor.held) == (False, True)
    # What the paused one does at its end does not let a third one in.
    paused.close()
    with pytest.raises(LockHeld):
        LockFile.take(path)
    assert successor.held
    successor.close()


def test_a_lock_whose_file_is_gone_is_not_held(tmp_path: Path) -> None:
    lock, _ = LockFile.take(tmp_path / "LOCK")
    (tmp_path / "LOCK").unlink()
    assert not lock.held
    lock.close()


def test_a_takeover_takes_the_log_from_a_paused_holder_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = EpochLog.create(tmp_path / "model", "m", {})
    with log.lock():
        with pytest.raises(Fenced, match="writes the log"), log.lock():
            pass
        with caplog.at_level(logging.WARNING), EpochLog.open(log.path).lock(takeover=True):
            assert "is paused or cut off" in caplog.text
            with pytest.raises(Fenced, match="writes the log"), log.lock():
                pass
