"""The file of the LMDB store: a map that grows, transactions, and what is done about damage. Blocking calls."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb

from streamtrain.errors import StoreBehind, StoreUnavailable

__all__ = ["LmdbFile"]

logger = logging.getLogger(__name__)

_REFILLED = "the store at %s is damaged and is filled again from the log: %s"
_STEP_BYTES = 1 << 24
_CLOSED = "closed"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_GROWTH = 4  # the file grows by a quarter of itself at least
_READERS_MAX = 8
_DAMAGE = (
    lmdb.BadDbiError,
    lmdb.CorruptedError,
    lmdb.InvalidError,
    lmdb.PageNotFoundError,
    lmdb.PanicError,
    lmdb.VersionMismatchError,
)

Work = Callable[[Any], None]


class LmdbFile:
    """One file with a database for each table. One thread writes, one other reads, at the same time.

    No commit waits for the disk (MDB_NOSYNC): an epoch dirties pages all over the file, and the same ones again a second
    later. A process that is killed leaves its pages to the kernel, so the file is whole. Only a machine that stops may
    leave it torn; so a mark says in which run of the machine the file was written, and a file that was not closed in an
    earlier run is not trusted: it is filled again from the log. The map is written to directly (MDB_WRITEMAP): dirty
    pages are the file's, not memory of this process that a large epoch would fill. Room for them is taken from the disk
    before (posix_fallocate), because a page of a file that finds no room kills the process.

    Args:
      folder: for this file alone; made.
      bytes_max: bound on the file.

    Attributes:
      tables: by name, its database; while the file is open.
      damage: why nothing in the file is trusted; "" while it is.
    """

    def __init__(self, folder: Path, bytes_max: int) -> None:
        self._folder, self._bytes_max = folder, bytes_max
        self._file, self._marked = folder / "data.mdb", folder / "written-in"
        self._names: tuple[str, ...] = ()
        self._env: Any = None
        self.tables: dict[str, Any] = {}
        self.damage = ""
        # Held while the file is read, and while its map changes its size or place: never both.
        self._mapped = threading.Lock()

    def open(self, tables: Iterable[str]) -> None:
        """Opens the file, or a new one where it is damaged. Raises StoreUnavailable."""
        self._names = tuple(tables)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._open_or_recreate()
        except (OSError, lmdb.Error) as error:
            raise StoreUnavailable(f"the store at {self._folder} cannot be opened: {error}") from error

    def close(self) -> None:
        """Writes all pages to the disk. Safe to call twice."""
        with self._mapped:
            if self._env is not None:
                self._env.sync(True)
                self._env.close()
                self._env = None
                self._mark(_CLOSED)

    def make_anew(self) -> None:
        """Puts an empty file in place of a damaged one. Raises StoreUnavailable."""
        logger.warning(_REFILLED, self._folder, self.damage)
        with self._mapped:
            self._env.close()
            try:
                self._recreate()
            except (OSError, lmdb.Error) as error:
                raise StoreUnavailable(f"the store at {self._folder} cannot be made anew: {error}") from error
        self.damage = ""

    @contextmanager
    def reading(self) -> Iterator[Any]:
        """A transaction that reads. Raises StoreBehind of a damaged file, StoreUnavailable of one that cannot be read."""
        with self._mapped:
            try:
                with self._env.begin() as txn:
                    yield txn
            except _DAMAGE as error:
                raise self.damaged(str(error)) from error
            except lmdb.Error as error:
                raise StoreUnavailable(f"the store at {self._folder} cannot be read: {error}") from error

    def write(self, work: Work) -> None:
        """Runs `work` in a transaction: all of it, or none. It may run several times, as the file grows.

        Raises: as `reading`; StoreUnavailable also where there is no room.
        """
        while True:
            try:
                with self._env.begin(write=True) as txn:
                    work(txn)
                return
            except lmdb.MapFullError:
                self._grow()
            except _DAMAGE as error:
                raise self.damaged(str(error)) from error
            except lmdb.Error as error:
                raise StoreUnavailable(f"the store at {self._folder} cannot be written: {error}") from error

    def damaged(self, why: str) -> StoreBehind:
        """Notes that nothing in the file is trusted any more; returns what to raise."""
        self.damage = why
        return StoreBehind(f"the store at {self._folder} is damaged, nothing in it is trusted: {why}")

    def used_bytes(self) -> int:
        """Of the file, what is or was in use; pages of removed rows are used again."""
        with self.reading():
            return self._end()

    def _end(self) -> int:
        return int((self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"])

    def _open_or_recreate(self) -> None:
        try:
            if why := self._torn():
                raise lmdb.CorruptedError(why)
            self._open_file()
            size, end = self._file.stat().st_size, self._end()
            if size >= end:
                return
            why = f"it has {size} bytes of {end}"
            self._env.close()
        except _DAMAGE as error:
            why = str(error)
        logger.warning(_REFILLED, self._folder, why)
        self._recreate()

    def _torn(self) -> str:
        """Why the file may lack pages that were never written to the disk; "" where it cannot."""
        if not self._file.exists():
            return ""
        mark = self._marked.read_text() if self._marked.exists() else ""
        if mark == _CLOSED or (mark and mark == _this_run()):
            return ""
        return "the machine stopped, or was another one, before the file was closed"

    def _mark(self, mark: str) -> None:
        with self._marked.open("w") as file:
            file.write(mark)
            file.flush()
            os.fsync(file.fileno())

    def _recreate(self) -> None:
        for name in ("data.mdb", "lock.mdb"):
            (self._folder / name).unlink(missing_ok=True)
        self._open_file()

    def _open_file(self) -> None:
        self._mark(_this_run())
        size = self._file.stat().st_size if self._file.exists() else 0
        env = lmdb.open(
            str(self._folder),
            map_size=max(size, _STEP_BYTES),
            sync=False,
            writemap=True,
            readahead=False,
            max_readers=_READERS_MAX,
            max_dbs=len(self._names),
        )
        try:
            self._reserve(max(size, _STEP_BYTES))
            self.tables = {name: env.open_db(f"rows:{name}".encode()) for name in self._names}
        except BaseException:
            env.close()
            raise
        self._env = env

    def _grow(self) -> None:
        with self._mapped:
            size = self._env.info()["map_size"]
            if size >= self._bytes_max:
                raise StoreUnavailable(
                    f"the store at {self._folder} is full: it has {size} bytes, store.disk_bytes_max is {self._bytes_max}; "
                    "raise that, or let fewer rows in by admission or expiry"
                )
            larger = min(size + max(_STEP_BYTES, size // _GROWTH), self._bytes_max)
            larger -= larger % _STEP_BYTES
            try:
                self._reserve(larger)
            except OSError as error:
                raise StoreUnavailable(
                    f"the store at {self._folder} cannot grow to {larger} bytes: {error.strerror}; make room on the disk"
                ) from error
            self._env.set_mapsize(larger)

    def _reserve(self, size: int) -> None:
        with self._file.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)


def _this_run() -> str:
    """What names this run of the machine, from its start to its stop; "" where the system has no name for it."""
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""
