"""The log when any one call to the disk fails, when the process dies there, and when the power goes there."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamtrain.errors import EpochMissing, LogError, LogFull
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.files import Files
from streamtrain.log.fold import fold
from streamtrain.log.readers import Readers
from streamtrain.log.recovery import recover
from streamtrain.log.verify import verify
from tests.reference_log import append_epochs, epoch_record

MUTATIONS = (
    "make_directory",
    "create",
    "write",
    "patch",
    "sync",
    "link",
    "replace",
    "unlink",
    "sync_directory",
)


class Died(BaseException):
    """The process is gone: nothing it would have done afterwards happens."""


class FaultyFiles(Files):
    """Real files; the call number `at` that changes the disk fails, with an error or by death.

    After a death `cut_power` takes back what was not synced: names in unsynced directories, content of unsynced files.
    """

    def __init__(self, at: int = 1 << 30, error: int | None = None, *, after: bool = False) -> None:
        self.at, self.error, self.after = at, error, after
        self.calls: list[str] = []
        self.dead = False
        self._contents: dict[int, Path] = {}
        self._unsynced_contents: set[int] = set()
        self._unsynced_names: set[Path] = set()

    def __getattribute__(self, name: str) -> Any:
        method = super().__getattribute__(name)
        return self._guarded(name, method) if name in MUTATIONS else method

    def _guarded(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if self.dead:
                raise Died
            self.calls.append(name)
            failing = len(self.calls) == self.at
            if failing and not self.after:
                self._fail()
            result = method(*arguments)
            self._remember(name, arguments, result)
            if failing:
                if name == "create" and self.error is None:
                    os.close(result)  # as the system does for the dead, and so lets go of its flock
                self._fail()
            return result

        return call

    def _fail(self) -> None:
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))
        self.dead = True
        raise Died

    def _remember(self, name: str, arguments: tuple[Any, ...], result: Any) -> None:
        if name in ("write", "patch"):
            self._unsynced_contents.add(os.fstat(arguments[0]).st_ino)
        elif name == "sync":
            self._unsynced_contents.discard(os.fstat(arguments[0]).st_ino)
        elif name == "link":
            self._unsynced_names.add(arguments[1])
        elif name == "sync_directory":
            self._unsynced_names = {path for path in self._unsynced_names if path.parent != arguments[0]}

    def cut_power(self, directory: Path) -> None:
        for file in directory.rglob("*"):
            if file.is_file() and file.stat().st_ino in self._unsynced_contents:
                os.truncate(file, file.stat().st_size // 2)
        for path in self._unsynced_names:
            path.unlink()


def count_calls(work: Callable[[Files], object]) -> int:
    files = FaultyFiles()
    work(files)
    return len(files.calls)


def die_at_each_call(
    prepare: Callable[[Path], None],
    work: Callable[[Path, Files], object],
    check: Callable[[Path, bool], None],
    tmp_path: Path,
) -> None:
    """Runs `work` on fresh logs, dying before and after each call, with and without the power going; then `check`."""
    (probe := tmp_path / "probe").mkdir()
    prepare(probe)
    calls = count_calls(lambda files: work(probe, files))
    assert calls >= 3
    for at in range(1, calls + 1):
        for after in (False, True):
            for power in (False, True):
                (directory := tmp_path / f"{at}.{after}.{power}").mkdir()
                prepare(directory)
                files = FaultyFiles(at, after=after)
                with pytest.raises(Died):
                    work(directory, files)
                if power:
                    files.cut_power(directory)
                check(directory, at == calls and after)


def with_log(upto: int) -> Callable[[Path], None]:
    def prepare(directory: Path) -> None:
        append_epochs(EpochLog.create(directory / "log", "m", {}), upto)

    return prepare


def test_after_death_in_an_append_the_head_is_old_or_new_and_never_else(tmp_path: Path) -> None:
    def append(directory: Path, files: Files) -> None:
        log = EpochLog.open(directory / "log", files)
        log.append(epoch_record(2, log.digest(1)))

    def check(directory: Path, finished: bool) -> None:
        log = EpochLog.open(directory / "log")
        head = log.head()
        assert head == 2 or (head == 1 and not finished)
        assert [record.epoch for record in recover(log)] == list(range(head + 1))
        with log.lock():
            append_epochs(log, 4)
        assert list((log.path / "tmp").iterdir()) == []
        assert verify(log.path).ok

    die_at_each_call(with_log(1), append, check, tmp_path)


def test_an_append_that_returned_survives_the_power(tmp_path: Path) -> None:
    files = FaultyFiles()
    log = EpochLog.create(tmp_path / "log", "m", {}, files)
    append_epochs(log, 2)
    files.cut_power(tmp_path)
    assert EpochLog.open(log.path).head() == 2 and verify(log.path).ok


def test_a_head_that_a_reader_was_told_of_survives_the_power(tmp_path: Path) -> None:
    with_log(0)(tmp_path)

    class DiesAfterTheLink(Files):
        def link(self, source: Path, target: Path) -> None:
            super().link(source, target)
            raise Died

    log = EpochLog.open(tmp_path / "log", DiesAfterTheLink())
    with pytest.raises(Died):
        log.append(epoch_record(1, log.digest(0)))
    reader = FaultyFiles()
    assert EpochLog.open(tmp_path / "log", reader).head() == 1
    assert reader.calls == ["sync_directory"]


def test_after_death_in_a_create_the_log_is_there_or_not(tmp_path: Path) -> None:
    def check(directory: Path, finished: bool) -> None:
        log = EpochLog.open_or_create(directory / "log", "m", {})
        append_epochs(log, 1)
        assert verify(log.path).ok

    die_at_each_call(
        lambda directory: None,
        lambda directory, files: EpochLog.create(directory / "log", "m", {}, files),
        check,
        tmp_path,
    )


def test_after_death_in_a_fold_the_log_is_whole(tmp_path: Path) -> None:
    def check(directory: Path, finished: bool) -> None:
        log = EpochLog.open(directory / "log")
        assert log.bases() in ([], [3]) and log.head() == 3
        assert verify(log.path).ok
        assert fold(log.path) == 3 and log.read_base(3).samples_total == 30

    die_at_each_call(
        with_log(3), lambda directory, files: fold(directory / "log", files=files), check, tmp_path
    )


def test_after_death_in_a_collection_the_log_is_whole(tmp_path: Path) -> None:
    def prepare(directory: Path) -> None:
        log = EpochLog.create(directory / "log", "m", {})
        for upto in (1, 3, 5):
            append_epochs(log, upto)
            fold(log.path)

    def check(directory: Path, finished: bool) -> None:
        log = EpochLog.open(directory / "log")
        assert verify(log.path).ok and log.head() == 5
        assert log.epochs() == list(range(log.epochs()[0], 6))

    die_at_each_call(
        prepare, lambda directory, files: EpochLog.open(directory / "log", files).collect(2), check, tmp_path
    )


def test_after_death_in_a_collection_with_readers_no_epoch_is_missing_that_a_reader_needs(
    tmp_path: Path,
) -> None:
    def prepare(directory: Path) -> None:
        log = EpochLog.create(directory / "log", "m", {})
        for upto in (1, 4, 7):
            append_epochs(log, upto)
            fold(log.path)
        log.register("behind", 3)
        Readers(log.path, clock=lambda: 1.0).register("silent for long", 0)
        (log.path / "readers" / "1.ab.aside").touch()

    def check(directory: Path, finished: bool) -> None:
        log = EpochLog.open(directory / "log")
        first = log.epochs()[0]
        assert log.epochs() == list(range(first, 8)) and first <= 4
        assert verify(log.path).ok and log.head() == 7
        log.collect(1)
        assert log.epochs() == [4, 5, 6, 7] and [reader.name for reader in log.readers.found()] == ["behind"]

    die_at_each_call(
        prepare, lambda directory, files: EpochLog.open(directory / "log", files).collect(1), check, tmp_path
    )


def test_after_death_in_a_registration_it_is_there_or_not_and_the_log_is_whole(tmp_path: Path) -> None:
    def check(directory: Path, finished: bool) -> None:
        log = EpochLog.open(directory / "log")
        assert [reader.epoch for reader in log.readers.found()] in ([1], [2], [])
        assert verify(log.path).ok
        fold(log.path)
        log.collect(1)
        assert [path.suffix for path in (log.path / "readers").iterdir()] in ([], [".json"])

    def prepare(directory: Path) -> None:
        log = EpochLog.create(directory / "log", "m", {})
        append_epochs(log, 3)
        log.register("a", 1)

    die_at_each_call(
        prepare,
        lambda directory, files: EpochLog.open(directory / "log", files).register("a", 2),
        check,
        tmp_path,
    )


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES]
)
def test_a_failing_call_is_a_typed_error_and_log_full_changes_nothing(tmp_path: Path, number: int) -> None:
    with_log(1)(tmp_path)
    probe = tmp_path / "probe"
    with_log(1)(probe)

    def append(files: Files, directory: Path = tmp_path) -> None:
        log = EpochLog.open(directory / "log", files)
        log.append(epoch_record(2, log.digest(1)))

    calls = count_calls(lambda files: append(files, probe))
    full = 0
    for at in range(1, calls + 1):
        log = EpochLog.open(tmp_path / "log")
        try:
            append(FaultyFiles(at, number))
        except LogFull as error:
            full += 1
            assert log.head() == 1 and list((log.path / "tmp").iterdir()) == []
            assert "then try again" in str(error) and str(log.path) in str(error)
        except LogError as error:
            assert str(log.path) in str(error)
        log = EpochLog.open(tmp_path / "log")
        assert log.head() in (1, 2)
        log.epoch_path(2).unlink(missing_ok=True)
    assert (full > 0) == (number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


def test_a_retry_after_a_full_disk_succeeds(tmp_path: Path) -> None:
    with_log(0)(tmp_path)
    files = FaultyFiles(error=errno.ENOSPC)
    log = EpochLog.open(tmp_path / "log", files)
    record = epoch_record(1, log.digest(0))
    log.head()
    files.at = len(files.calls) + 2
    with pytest.raises(LogFull, match="free space there"):
        log.append(record)
    log.append(epoch_record(1, log.digest(0), committed_at_ms=1))
    assert log.read(1).committed_at_ms == 1


def test_a_file_system_without_links_is_named_as_such(tmp_path: Path) -> None:
    class NoLinks(Files):
        def link(self, source: Path, target: Path) -> None:
            raise OSError(errno.EPERM, "Operation not permitted", str(source), None, str(target))

    with pytest.raises(LogError, match="needs hard links"):
        EpochLog.create(tmp_path / "log", "m", {}, NoLinks())


def test_a_fold_of_an_empty_log_says_so(tmp_path: Path) -> None:
    EpochLog.create(tmp_path / "log", "m", {})
    with pytest.raises(EpochMissing, match="nothing to fold"):
        fold(tmp_path / "log")
