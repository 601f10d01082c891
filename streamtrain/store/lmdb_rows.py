"""The file of the LMDB store: transactions over rows, as blocking calls. `docs/store.md` specifies keys and values."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from numpy.typing import NDArray

from streamtrain.errors import StoreBehind, StoreRefused, StoreUnavailable
from streamtrain.log.record import EpochRecord, TableRows
from streamtrain.sparse.turns import tags_of
from streamtrain.store.lmdb_packing import keys_of, pack, unpack
from streamtrain.store.packing import unpack_values
from streamtrain.store.shares import check_tables
from streamtrain.store.store import StoreDescription

__all__ = ["LmdbRows"]

logger = logging.getLogger(__name__)

_REFILLED = "the store at %s is damaged and is filled again from the log: %s"
_ROWS_MAX = 1 << 16  # rows that exist as Python objects at once
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


class LmdbRows:
    """All rows of one model in one file. One thread writes, one other reads, at the same time.

    No commit waits for the disk (MDB_NOSYNC): an epoch dirties pages all over the file, and the same ones again a second
    later. A process that is killed leaves its pages to the kernel, so the file is whole. Only a machine that stops may
    leave it torn; so a mark says in which run of the machine the file was written, and a file that was not closed in an
    earlier run is not trusted: it is filled again from the log. The map is written to directly (MDB_WRITEMAP): dirty
    pages are the file's, not memory of this process that a large epoch would fill. Room for them is taken from the disk
    before (posix_fallocate), because a page of a file that finds no room kills the process.

    Args:
      folder: for this file alone; made.
      bytes_max: bound on the file.
    """

    def __init__(self, folder: Path, bytes_max: int) -> None:
        self._folder, self._bytes_max = folder, bytes_max
        self._file, self._marked = folder / "data.mdb", folder / "written-in"
        self._description: StoreDescription | None = None
        self._env: Any = None
        self._tables: dict[str, Any] = {}
        self._damage = ""
        # Held while the file is read, and while its map changes its size or place: never both.
        self._mapped = threading.Lock()

    def open(self, description: StoreDescription) -> None:
        """Opens the file, or a new one where it is damaged. Raises as `Store.open`."""
        self._description = description
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._open_or_recreate()
        except (OSError, lmdb.Error) as error:
            raise StoreUnavailable(f"the store at {self._folder} cannot be opened: {error}") from error
        self._write(self._claim)

    def close(self) -> None:
        """Writes all pages to the disk. Safe to call twice."""
        with self._mapped:
            if self._env is not None:
                self._env.sync(True)
                self._env.close()
                self._env = None
                self._mark(_CLOSED)

    def epoch(self) -> int | None:
        """The epoch up to which the rows are whole. A file that is damaged is made anew, and has none."""
        if not self._damage:
            try:
                with self._reading() as txn:
                    return self._epoch(txn)
            except StoreBehind:
                pass  # Found damaged just now.
        self._make_anew()
        return None

    def _make_anew(self) -> None:
        logger.warning(_REFILLED, self._folder, self._damage)
        with self._mapped:
            self._env.close()
            try:
                self._recreate()
            except (OSError, lmdb.Error) as error:
                raise StoreUnavailable(f"the store at {self._folder} cannot be made anew: {error}") from error
        self._damage = ""
        self._write(self._claim)

    def apply(self, record: EpochRecord) -> None:
        """As `Store.apply`, in one transaction."""
        check_tables(record, self._opened)

        def work(txn: Any) -> None:
            epoch = self._epoch(txn)
            if epoch is not None and epoch >= record.epoch:
                return
            if epoch != record.epoch - 1:
                raise self._behind(epoch, record.epoch - 1)
            for name, rows in record.tables.items():
                self._remove(txn, name, rows.tombstones)
                for part in _parts(len(rows.ids)):
                    self._put(txn, name, rows, part)
            self._finish(txn, record.epoch)

        self._write(work)

    def load_base(self, base: EpochRecord) -> None:
        """As `Store.load_base`, in several transactions; until the last one the file holds nothing that is trusted."""
        check_tables(base, self._opened)
        try:
            self._load(base)
        except StoreBehind:
            # The file is damaged. The second time it is made anew first.
            self._load(base)

    def _load(self, base: EpochRecord) -> None:
        epoch = self.epoch()
        if epoch is not None and epoch >= base.epoch:
            return
        self._write(self._clear)
        for name, rows in base.tables.items():
            for part in _parts(len(rows.ids)):
                self._write(lambda txn, name=name, rows=rows, part=part: self._put(txn, name, rows, part))  # type: ignore[misc]
        self._write(lambda txn: self._finish(txn, base.epoch))

    def pull(
        self, table: str, ids: NDArray[np.uint64], epoch_min: int
    ) -> tuple[NDArray[np.bool_], TableRows]:
        """As `Store.pull`, from one snapshot."""
        asked, inverse = np.unique(ids, return_inverse=True)
        order = np.argsort(tags_of(asked), kind="stable")
        asked, place = asked[order], np.argsort(order)[inverse]
        with self._reading() as txn:
            epoch = self._epoch(txn)
            if epoch is None or epoch < epoch_min:
                raise self._behind(epoch, epoch_min)
            cursor = txn.cursor(self._tables[table])
            held = [cursor.getmulti(keys_of(asked[part])) for part in _parts(len(asked))]
        try:
            found, values = unpack([pair for part in held for pair in part], *self._opened.tables[table])
        except ValueError as error:
            raise self._damaged(f"table {table!r}: {error}") from error
        there = np.isin(asked, found, assume_unique=True)
        at = np.cumsum(there) - 1
        wanted = at[place[there[place]]]
        return there[place], unpack_values(found[wanted], values[wanted])

    def used_bytes(self) -> int:
        """Of the file, what is or was in use; pages of removed rows are used again."""
        with self._reading():
            info, stat = self._env.info(), self._env.stat()
        return int((info["last_pgno"] + 1) * stat["psize"])

    @property
    def _opened(self) -> StoreDescription:
        assert self._description is not None, "open comes first"
        return self._description

    @property
    def removal(self) -> str:
        """What a person does to be rid of the file."""
        return f"remove the rows (they are only a copy): rm -r {self._folder}"

    # Opening.

    def _open_or_recreate(self) -> None:
        try:
            if why := self._torn():
                raise lmdb.CorruptedError(why)
            self._open_file()
            last = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]
            if self._file.stat().st_size >= last:
                return
            why = f"it has {self._file.stat().st_size} bytes of {last}"
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
            max_dbs=len(self._opened.tables),
        )
        try:
            self._reserve(max(size, _STEP_BYTES))
            self._tables = {name: env.open_db(f"rows:{name}".encode()) for name in self._opened.tables}
        except BaseException:
            env.close()
            raise
        self._env = env

    def _claim(self, txn: Any) -> None:
        held = txn.get(b"model_id")
        if held is not None and held != self._opened.model_id.encode():
            raise StoreRefused(
                f"the store at {self._folder} holds rows of model {held.decode(errors='replace')!r}, this log is of model "
                f"{self._opened.model_id!r}; name another directory in store.url, or {self.removal}"
            )
        filled = txn.get(b"description")
        if filled is not None and filled != self._opened.text().encode():
            raise StoreRefused(
                f"the store at {self._folder} was filled as {filled.decode(errors='replace')}, but this configuration says "
                f"{self._opened.text()}; bring back the old settings, or {self.removal}"
            )
        txn.put(b"model_id", self._opened.model_id.encode())
        txn.put(b"description", self._opened.text().encode())

    # Transactions.

    @contextmanager
    def _reading(self) -> Iterator[Any]:
        with self._mapped:
            try:
                with self._env.begin() as txn:
                    yield txn
            except _DAMAGE as error:
                raise self._damaged(str(error)) from error
            except lmdb.Error as error:
                raise StoreUnavailable(f"the store at {self._folder} cannot be read: {error}") from error

    def _write(self, work: Work) -> None:
        """Runs `work` in a transaction: all of it, or none. It may run several times, as the file grows."""
        while True:
            try:
                with self._env.begin(write=True) as txn:
                    work(txn)
                return
            except lmdb.MapFullError:
                self._grow()
            except _DAMAGE as error:
                raise self._damaged(str(error)) from error
            except lmdb.Error as error:
                raise StoreUnavailable(f"the store at {self._folder} cannot be written: {error}") from error

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

    # Rows.

    def _epoch(self, txn: Any) -> int | None:
        """The applied epoch; None also where rows were removed by another hand since."""
        held = txn.get(b"epoch")
        if held is None:
            return None
        for name, db in self._tables.items():
            rows = txn.stat(db)["entries"]
            if txn.get(f"rows:{name}:count".encode()) != b"%d" % rows:
                raise self._damaged(f"table {name!r} has {rows} rows, not as many as it was left with")
        return int(held)

    def _finish(self, txn: Any, epoch: int) -> None:
        for name, db in self._tables.items():
            txn.put(f"rows:{name}:count".encode(), b"%d" % txn.stat(db)["entries"])
        txn.put(b"epoch", b"%d" % epoch)

    def _clear(self, txn: Any) -> None:
        self._claim(txn)
        txn.delete(b"epoch")
        for db in self._tables.values():
            txn.drop(db, delete=False)

    def _put(self, txn: Any, table: str, rows: TableRows, part: slice) -> None:
        txn.cursor(self._tables[table]).putmulti(pack(rows, part))

    def _remove(self, txn: Any, table: str, ids: NDArray[np.uint64]) -> None:
        for key in keys_of(ids):
            txn.delete(key, db=self._tables[table])

    def _damaged(self, why: str) -> StoreBehind:
        self._damage = why
        return StoreBehind(f"the store at {self._folder} is damaged, nothing in it is trusted: {why}")

    def _behind(self, epoch: int | None, needed: int) -> StoreBehind:
        held = "holds nothing that can be trusted" if epoch is None else f"has applied epoch {epoch}"
        return StoreBehind(f"the store at {self._folder} {held}, needed is epoch {needed}")


def _this_run() -> str:
    """What names this run of the machine, from its start to its stop; "" where the system has no name for it."""
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""


def _parts(count: int) -> Iterator[slice]:
    return (slice(start, min(start + _ROWS_MAX, count)) for start in range(0, count, _ROWS_MAX))
