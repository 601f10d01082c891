"""Disks that do not do what the log needs are found out by trying; nothing stays behind."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from streamtrain.doctor.disk import (
    Trial,
    examine_log_disk,
    examine_room,
    file_system_of,
    judge_trial,
    try_disk,
)
from streamtrain.findings import Level
from streamtrain.log.files import Files


class Linkless(Files):
    def link(self, source: Path, target: Path) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")


class Overwriting(Files):
    def link(self, source: Path, target: Path) -> None:
        target.unlink(missing_ok=True)
        os.link(source, target)


class Copying(Files):
    def link(self, source: Path, target: Path) -> None:
        if target.exists():
            raise FileExistsError(errno.EEXIST, "File exists")
        shutil.copyfile(source, target)


class Lockless(Files):
    def create(self, path: Path) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)


class Forgetful(Files):
    def sync_directory(self, path: Path) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")


@pytest.mark.parametrize(
    ("files", "wrong"),
    [
        (Files(), ""),
        (Linkless(), "no hard links"),
        (Overwriting(), "overwrite another's epoch"),
        (Copying(), "a copy"),
        (Lockless(), "two may hold one lock"),
        (Forgetful(), "cannot be synced"),
    ],
)
def test_a_disk_is_tried_as_the_log_uses_it_and_left_as_it_was(
    files: Files, wrong: str, tmp_path: Path
) -> None:
    trial = try_disk(files, tmp_path)
    assert (wrong in trial.wrong) if wrong else not trial.wrong
    assert trial.sync_s > 0 and not list(tmp_path.iterdir())
    assert any(found.level is Level.FAULT for found in judge_trial(tmp_path, trial, 60)) is bool(wrong)


def test_a_slow_disk_is_told_with_the_interval_that_it_allows(tmp_path: Path) -> None:
    (fast,) = judge_trial(tmp_path, Trial("ext4", 0.01, ""), 1.0)
    (slow,) = judge_trial(tmp_path, Trial("ext4", 0.4, ""), 1.0)
    assert (fast.level, slow.level) == (Level.OK, Level.WARNING)
    assert "log.epoch_interval_s = 1.6" in slow.remedy


@pytest.mark.parametrize("kind", ["tmpfs", "overlay"])
def test_a_log_that_would_go_with_the_machine_or_container_is_told(kind: str, tmp_path: Path) -> None:
    first, *_ = judge_trial(tmp_path, Trial(kind, 0.0001, ""), 1.0)
    assert first.level is Level.WARNING and kind in first.text


def test_room_is_measured_against_what_a_fold_needs(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    levels = [examine_room("log", tmp_path, needed)[0].level for needed in (0, free * 3 // 4, 2 * free)]
    assert levels[1:] == [Level.WARNING, Level.FAULT]
    assert levels[0] is Level.OK or free < 1 << 30


def test_a_log_that_is_not_there_yet_is_looked_for_where_it_will_be_made(tmp_path: Path) -> None:
    found = examine_log_disk(tmp_path / "not" / "yet", 0, 60)
    assert all(f.level is not Level.FAULT for f in found) and str(tmp_path) in found[-1].text
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_directory_of_somebody_else_is_a_fault(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    (found,) = examine_log_disk(tmp_path, 0, 1.0)
    assert found.level is Level.FAULT and "chown" in found.remedy


def test_the_file_system_is_the_innermost_and_newest_mount(tmp_path: Path) -> None:
    mounts = (
        "21 1 8:1 / / rw - ext4 /dev/a rw\n"
        f"22 21 0:5 / {tmp_path} rw shared:1 - tmpfs none rw\n"
        f"23 22 0:6 / {tmp_path} rw - xfs /dev/b rw\n"
        f"24 21 0:7 / {tmp_path}-other rw - nfs4 h:/x rw\n"
    )
    assert file_system_of(tmp_path / "model", mounts) == "xfs"
    assert file_system_of(Path("/"), mounts) == "ext4"
