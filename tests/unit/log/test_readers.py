"""Registered readers: what they hold, for how long, and what can never stop a collection."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import BinaryIO

import pytest

from streamtrain.cli import main
from streamtrain.errors import LogError, RegistrationRefused
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.files import Files
from streamtrain.log.fold import fold
from streamtrain.log.inspect import inspect
from streamtrain.log.reader import LogReader
from streamtrain.log.readers import Holding, Readers
from streamtrain.log.verify import verify
from tests.reference_log import append_epochs

HOLDING = Holding()


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def readers(tmp_path: Path, clock: Clock) -> Readers:
    return Readers(tmp_path, clock=clock)


@pytest.fixture
def log(tmp_path: Path) -> EpochLog:
    """Epochs 0 to 12, bases of 4, 8 and 12."""
    log = EpochLog.create(tmp_path / "log", "clicks", {})
    for upto in (4, 8, 12):
        append_epochs(log, upto)
        fold(log.path)
    return log


def test_a_registered_reader_tells_who_and_how_far_it_is(readers: Readers, clock: Clock) -> None:
    with readers.register("standby a/17", 3, kind="standby") as registration:
        (reader,) = readers.found()
        assert (reader.name, reader.kind, reader.pid, reader.epoch) == (
            "standby a/17",
            "standby",
            os.getpid(),
            3,
        )
        assert reader.renewed_at_ms == clock.now * 1000
        clock.now += 1
        registration.advance(4)
        assert [reader.epoch for reader in readers.found()] == [4]
    assert readers.found() == [] and list(readers.path.iterdir()) == []


def test_it_is_written_once_a_second_while_it_moves_and_every_few_while_it_stands(
    readers: Readers, clock: Clock
) -> None:
    registration = readers.register("a", 0)
    written = []
    for tick in range(1, 101):  # ten seconds
        clock.now = 1_000_000.0 + tick / 10
        registration.advance(min(tick, 50))
        written.append(readers.found()[0].renewed_at_ms)
    assert len(set(written[:50])) == 6 and readers.found()[0].epoch == 50
    assert len(set(written[50:])) == 2


def test_one_that_has_not_chosen_yet_is_written_as_soon_as_it_has(readers: Readers) -> None:
    registration = readers.register("a")
    registration.advance(7)
    assert readers.found()[0].epoch == 7


@pytest.mark.parametrize("name", ["..", "../../x", ".", "a/b", "ä", "a\nb", "x.json", "%2F", " "])
def test_any_name_stays_inside_the_directory_and_comes_back(readers: Readers, name: str) -> None:
    readers.register(name, 1)
    assert [reader.name for reader in readers.found()] == [name]
    assert len(list(readers.path.iterdir())) == 1


@pytest.mark.parametrize("name", ["", "x" * 161, "ä" * 30])
def test_a_name_that_makes_no_file_name_is_the_callers_mistake(readers: Readers, name: str) -> None:
    with pytest.raises(ValueError, match="1 to 160 bytes"):
        readers.register(name, 1)


def test_a_lease_that_ended_holds_nothing_and_its_file_goes(readers: Readers, clock: Clock) -> None:
    readers.register("silent", 1)
    clock.now += 500
    readers.register("alive", 2)
    clock.now += 101
    assert readers.held(9, HOLDING) == [2]
    assert [reader.name for reader in readers.found()] == ["alive"]


def test_a_time_far_ahead_holds_nothing(readers: Readers, clock: Clock) -> None:
    readers.register("clock gone wrong", 1)
    clock.now -= 601
    assert readers.held(9, HOLDING) == []


def test_a_reader_whose_file_was_removed_is_back_at_its_next_renewal(readers: Readers, clock: Clock) -> None:
    registration = readers.register("paused", 1)
    clock.now += 601
    assert readers.held(9, HOLDING) == []
    registration.advance(1)
    assert readers.held(9, HOLDING) == [1]


def test_one_too_far_behind_is_named_and_holds_nothing(
    readers: Readers, caplog: pytest.LogCaptureFixture
) -> None:
    readers.register("slow", 9, kind="follower")
    readers.register("slower", 8, kind="follower")
    assert readers.held(109, Holding(epochs_max=100)) == [9]
    assert "reader slower (follower, pid" in caplog.text and "hold_epochs_max" in caplog.text


def test_the_last_to_register_a_name_has_it(
    readers: Readers, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    former = readers.register("twin", 1)
    latter = readers.register("twin", 5)
    clock.now += 10
    former.advance(2)
    former.advance(3)
    assert former.lost and not latter.lost and readers.found()[0].epoch == 5
    assert caplog.text.count("has registered as reader twin") == 1
    former.leave()
    assert readers.found()[0].epoch == 5
    latter.leave()
    assert readers.found() == []


GARBAGE = [
    b"", b"{}", b"[1]", b"\xff\xfe", b'{"format": 1}', b"x" * 20_000, b'{"format":2,"name":"a"}',
    b'{"format":1,"name":"a","kind":"k","host":"h","pid":1,"id":"i","epoch":-1,"renewed_at_ms":0}',
    b'{"format":1,"name":"a","kind":"k","host":"h","pid":1,"id":"i","epoch":true,"renewed_at_ms":0}',
    b'{"format":1,"name":7,"kind":"k","host":"h","pid":1,"id":"i","epoch":0,"renewed_at_ms":0}',
    b'{"format":1,"name":"b","kind":"k","host":"h","pid":1,"id":"i","epoch":0,"renewed_at_ms":0}',
]  # fmt: skip


@pytest.mark.parametrize("content", GARBAGE)
def test_what_is_no_registration_is_ignored_with_a_warning(
    log: EpochLog, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (log.path / "readers" / "a.json").write_bytes(content)
    assert log.collect(2) > 0 and log.epochs() == [11, 12]
    assert caplog.text.count("is no registration of a reader") == 1
    assert (log.path / "readers" / "a.json").exists()


def test_foreign_files_and_directories_never_stop_a_collection(log: EpochLog) -> None:
    (log.path / "readers" / "d.json").mkdir()
    (log.path / "readers" / "README").write_text("hello")
    (log.path / "readers" / "dangling.json").symlink_to("nowhere")
    assert log.collect(2) > 0
    assert verify(log.path).ok


def test_nothing_goes_while_the_disk_fails_at_a_registration(log: EpochLog) -> None:
    """Simulation seed 107351."""

    class Failing(Files):
        def open(self, path: Path) -> BinaryIO:
            if path.parent.name == "readers":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().open(path)

    log.register("slow", 1)
    fold(log.path)
    before = log.epochs()
    with pytest.raises(LogError, match="Input/output error"):
        EpochLog.open(log.path, Failing()).collect(1)
    assert log.epochs() == before


def test_a_log_without_the_directory_is_collected_and_can_be_registered_with(log: EpochLog) -> None:
    (log.path / "readers").rmdir()
    assert LogReader.open(log.path).readers.found() == []
    assert log.collect(2) > 0
    LogReader.open(log.path).register("a", 12)
    assert [reader.epoch for reader in log.readers.found()] == [12]


def test_collection_leaves_what_follows_the_epoch_of_a_reader(log: EpochLog) -> None:
    with log.register("behind", 5):
        log.collect(1)
        assert log.epochs() == list(range(6, 13))
    log.collect(1)
    assert log.epochs() == [12]


def test_nothing_goes_while_a_reader_is_still_to_choose_where_it_begins(log: EpochLog) -> None:
    with log.register("new") as registration:
        assert log.collect(1) == 0 and log.bases() == [4, 8, 12]
        registration.advance(12)
        assert log.collect(1) > 0 and (log.epochs(), log.bases()) == ([12], [8, 12])


def test_a_log_that_may_only_be_read_refuses_registration_and_can_be_read(tmp_path: Path) -> None:
    class ReadOnly(Files):
        def create(self, path: Path) -> int:
            raise PermissionError(13, "Permission denied", str(path))

    append_epochs(EpochLog.create(tmp_path / "log", "m", {}), 2)
    log = LogReader.open(tmp_path / "log", ReadOnly())
    with pytest.raises(
        RegistrationRefused, match=r"cannot register a reader in .*readers.*Without being registered"
    ):
        log.register("third party", 1)
    assert log.read(2).epoch == 2 and log.readers.found() == []


def test_a_renewal_that_fails_is_told_once_and_tried_again(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    class Full(Files):
        full = False

        def write(self, descriptor: int, data: bytes | memoryview) -> None:
            if self.full:
                raise OSError(28, "No space left on device")
            super().write(descriptor, data)

    files = Full()
    readers = Readers(tmp_path, files, clock)
    registration = readers.register("a", 1)
    files.full = True
    for epoch in range(2, 6):
        clock.now += 2
        registration.advance(epoch)
    assert caplog.text.count("cannot renew the registration of reader a") == 1
    assert readers.found()[0].epoch == 1
    files.full = False
    clock.now += 2
    registration.advance(6)
    assert readers.found()[0].epoch == 6


def test_nothing_is_made_where_there_is_no_directory(tmp_path: Path) -> None:
    with pytest.raises(RegistrationRefused, match="No such file or directory"):
        Readers(tmp_path / "gone").register("a", 1)
    assert not (tmp_path / "gone").exists()


def test_there_are_at_most_256_readers(readers: Readers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamtrain.log.readers._READERS_MAX", 3)
    for number in range(3):
        readers.register(str(number), number)
    readers.register("2", 5)
    with pytest.raises(RegistrationRefused, match="there are 3 already"):
        readers.register("one more", 1)


def test_what_a_writer_left_when_it_died_is_removed(readers: Readers) -> None:
    readers.register("a", 1)
    (readers.path / "1.ab.aside").write_bytes(b"half")
    assert readers.held(1, HOLDING) == [1]
    assert [path.name for path in readers.path.iterdir()] == ["a.json"]


def test_inspect_lists_who_is_registered_and_how_far_behind(
    log: EpochLog, capsys: pytest.CaptureFixture[str]
) -> None:
    log.register("standby a", 10, kind="standby")
    log.register("undecided")
    first, second = inspect(log.path)["readers"]
    assert (first["name"], first["epoch"], first["behind"]) == ("standby a", 10, 2)
    assert (second["name"], second["epoch"], second["behind"]) == ("undecided", None, None)
    assert main(["inspect", str(log.path)]) == 0
    text = capsys.readouterr().out
    assert "standby a (standby, pid " in text and "epoch 10, 2 behind, last seen" in text
    assert "is to choose a base" in text
