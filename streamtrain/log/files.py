"""The file layer of the log: every call that reaches the disk, one method each, so that a test can fail any of them.

Durability rests on three rules. A file is complete and synced before it gets its final name; the name is given by
link(2), which fails where the name exists; and a name counts only once its directory is synced. A file whose fsync
failed is thrown away, never synced again: the kernel may have dropped its dirty pages (Rebello et al., ATC 2020).
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from streamtrain.errors import LogError, LogFull

__all__ = ["Aside", "Files", "clean_asides", "typed_errors"]

Bytes = bytes | memoryview

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.ENOSYS}


class Files:
    """The operating system's calls, unbuffered. Stateless; safe to share between threads. Raises OSError."""

    def make_directory(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)

    def create(self, path: Path) -> int:
        """Creates a file that must not exist, for writing; the descriptor holds its flock as a sign of life."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor

    def write(self, descriptor: int, data: Bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left) :]

    def patch(self, descriptor: int, offset: int, data: Bytes) -> None:
        """Overwrites a few bytes at `offset`, which lie inside what was written."""
        if os.pwrite(descriptor, data, offset) != len(data):
            raise OSError(errno.EIO, "short write")

    def sync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def link(self, source: Path, target: Path) -> None:
        """Raises FileExistsError where `target` exists: the compare-and-swap that a commit is."""
        os.link(source, target)

    def unlink(self, path: Path) -> None:
        path.unlink()

    def sync_directory(self, path: Path) -> None:
        """Makes the names in a directory durable; any process that may read the directory may do so."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def names(self, path: Path) -> list[str]:
        return os.listdir(path)  # noqa: PTH208 - names are wanted, without a Path object for each

    def exists(self, path: Path) -> bool:
        return path.exists()

    def size(self, path: Path) -> int:
        return path.stat().st_size

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def replace(self, source: Path, target: Path) -> None:
        """Gives a file its name, atomically, in place of whatever had it."""
        os.replace(source, target)  # noqa: PTH105 - the call itself, as all of this layer

    def open(self, path: Path) -> BinaryIO:
        return path.open("rb", buffering=0)

    def map(self, file: BinaryIO) -> mmap.mmap:
        """The file as read-only memory, which stays valid when the name is removed."""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class Aside:
    """A file written aside, in a log's `tmp/`, to be put in place by `link`. A context manager: the name aside goes.

    Args:
      files: the file layer.
      directory: `tmp/`, on the same file system as the targets.
      name: what the file is for; shown in its name beside the process id.
    """

    def __init__(self, files: Files, directory: Path, name: str) -> None:
        self._files = files
        self.path = directory / f"{os.getpid()}.{secrets.token_hex(4)}.{name}"
        self._descriptor: int | None = None
        self._moved = False

    def __enter__(self) -> Aside:
        self._descriptor = self._files.create(self.path)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._descriptor is not None
        # What remains aside is garbage whatever happened, and the next writer removes it too.
        try:
            with suppress(OSError):
                if not self._moved:
                    self._files.unlink(self.path)
        finally:
            with suppress(OSError):
                self._files.close(self._descriptor)

    def write(self, data: Bytes) -> None:
        assert self._descriptor is not None
        self._files.write(self._descriptor, data)

    def patch(self, offset: int, data: Bytes) -> None:
        assert self._descriptor is not None
        self._files.patch(self._descriptor, offset, data)

    def link(self, target: Path) -> None:
        """Syncs the content, then gives it its name. The directory is still to be synced.

        Raises:
          FileExistsError: the name is taken; the file that has it is untouched.
        """
        assert self._descriptor is not None
        self._files.sync(self._descriptor)
        self._files.link(self.path, target)

    def replace(self, target: Path) -> None:
        """Gives the content its name, in place of whatever had it. Nothing is synced: for what may be lost."""
        self._files.replace(self.path, target)
        self._moved = True


def clean_asides(files: Files, directory: Path, suffix: str = "") -> int:
    """Removes what dead processes left in `tmp/`; a file whose writer lives is flocked and stays.

    Args:
      suffix: looks only at names that end so, in a directory that holds other files too.

    Returns:
      How many files were removed.
    """
    removed = 0
    for name in files.names(directory):
        if not name.endswith(suffix):
            continue
        with suppress(OSError), files.open(directory / name) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            files.unlink(directory / name)
            removed += 1
    return removed


@contextmanager
def typed_errors(doing: str, path: Path) -> Iterator[None]:
    """Turns an OSError into a LogError that says what to do.

    Args:
      doing: what was tried, as in "cannot {doing} {path}".

    Raises:
      LogFull: no space, quota or file-size limit.
      LogError: any other OSError.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        text = f"cannot {doing} {path}: {reason}"
        if error.errno in _FULL:
            too_large = error.errno == errno.EFBIG
            what = (
                "raise the file-size limit (ulimit -f)"
                if too_large
                else "free space there or raise the quota"
            )
            raise LogFull(f"{text}; {what}, then try again: nothing was changed") from error
        if error.errno in _NO_LINKS and error.filename2 is not None:
            raise LogError(
                f"{text}; the log needs hard links: put it on a file system such as ext4 or xfs"
            ) from error
        if error.errno in _FORBIDDEN:
            raise LogError(
                f"{text}; check its owner, mode and mount: this user ({os.getuid()}) must be able to write there"
            ) from error
        if error.errno == errno.EIO:
            raise LogError(f"{text}; the disk failed: check it, then `streamtrain verify`") from error
        raise LogError(text) from error
