"""The rows of the LMDB store, as blocking calls. `docs/store.md` specifies keys and values."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from functools import partial
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.errors import StoreBehind, StoreRefused
from streamtrain.log.record import EpochRecord, TableRows
from streamtrain.sparse.turns import tickets_of
from streamtrain.store.lmdb_file import LmdbFile
from streamtrain.store.lmdb_packing import key_of, keys_of, pack, unpack
from streamtrain.store.packing import unpack_values
from streamtrain.store.shares import check_tables
from streamtrain.store.store import StoreDescription, Unused

__all__ = ["LmdbRows"]

_KEYS = b"tickets"  # What keys begin with. A file that does not say so is of a version whose keys lay in another order.
_ROWS_MAX = 1 << 16  # rows that exist as Python objects at once
_SCANNED_MAX = 1 << 12
"""Rows that are read in order at once, which takes a few milliseconds."""


class LmdbRows:
    """All rows of one model in one file. One thread writes, one other reads, at the same time.

    Args:
      folder: for this file alone; made.
      bytes_max: bound on the file.
    """

    def __init__(self, folder: Path, bytes_max: int) -> None:
        self._folder, self._file = folder, LmdbFile(folder, bytes_max)
        self._description: StoreDescription | None = None

    def open(self, description: StoreDescription) -> None:
        """Opens the file, or a new one where it is damaged. Raises as `Store.open`."""
        self._description = description
        self._file.open(description.tables)
        self._file.write(self._claim)

    def close(self) -> None:
        """Writes all pages to the disk. Safe to call twice."""
        self._file.close()

    def epoch(self) -> int | None:
        """The epoch up to which the rows are whole. A file that is damaged is made anew, and has none."""
        if not self._file.damage:
            try:
                with self._file.reading() as txn:
                    return self._epoch(txn)
            except StoreBehind:
                pass  # Found damaged just now.
        self._file.make_anew()
        self._file.write(self._claim)
        return None

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

        self._file.write(work)

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
        self._file.write(self._clear)
        for name, rows in base.tables.items():
            for part in _parts(len(rows.ids)):
                self._file.write(partial(self._put, table=name, rows=rows, part=part))
        self._file.write(lambda txn: self._finish(txn, base.epoch))

    def pull(
        self, table: str, ids: NDArray[np.uint64], epoch_min: int
    ) -> tuple[NDArray[np.bool_], TableRows]:
        """As `Store.pull`, from one snapshot."""
        asked, inverse = np.unique(ids, return_inverse=True)
        order = np.argsort(tickets_of(asked), kind="stable")
        asked, place = asked[order], np.argsort(order)[inverse]
        with self._file.reading() as txn:
            epoch = self._epoch(txn)
            if epoch is None or epoch < epoch_min:
                raise self._behind(epoch, epoch_min)
            cursor = txn.cursor(self._file.tables[table])
            held = [cursor.getmulti(keys_of(asked[part])) for part in _parts(len(asked))]
        try:
            found, values = unpack([pair for part in held for pair in part], *self._opened.tables[table])
        except ValueError as error:
            raise self._file.damaged(f"table {table!r}: {error}") from error
        there = np.isin(asked, found, assume_unique=True)
        at = np.cumsum(there) - 1
        wanted = at[place[there[place]]]
        return there[place], unpack_values(found[wanted], values[wanted])

    def scan(
        self, table: str, key: bytes, end: int, unused: Unused | None, epoch_min: int
    ) -> tuple[TableRows, bytes | None]:
        """A piece of what `Store.scan` reads: from `key` on, below ticket `end`; and the key of the next one, or None."""
        with self._file.reading() as txn:
            epoch = self._epoch(txn)
            if epoch is None or epoch < epoch_min:
                raise self._behind(epoch, epoch_min)
            cursor = txn.cursor(self._file.tables[table])
            held = list(islice(cursor, _SCANNED_MAX)) if cursor.set_range(key) else []
        count = bisect_left(held, key_of(end), key=itemgetter(0))
        try:
            ids, values = unpack(held[:count], *self._opened.tables[table])
        except ValueError as error:
            raise self._file.damaged(f"table {table!r}: {error}") from error
        wanted = slice(None) if unused is None else unused.among(values["last_step"])
        # No key of the same length lies between a key and itself with a zero behind it.
        following = held[-1][0] + b"\0" if count == _SCANNED_MAX else None
        return unpack_values(ids[wanted], values[wanted]), following

    def used_bytes(self) -> int:
        """Of the file, what is or was in use; pages of removed rows are used again."""
        return self._file.used_bytes()

    @property
    def _opened(self) -> StoreDescription:
        assert self._description is not None, "open comes first"
        return self._description

    @property
    def removal(self) -> str:
        """What a person does to be rid of the file."""
        return f"remove the rows (they are only a copy): rm -r {self._folder}"

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
                f"the store at {self._folder} {self._opened.refusal(filled)}, or {self.removal}"
            )
        if held is None:
            txn.put(b"keys", _KEYS)
        txn.put(b"model_id", self._opened.model_id.encode())
        txn.put(b"description", self._opened.text().encode())

    # Rows.

    def _epoch(self, txn: Any) -> int | None:
        """The applied epoch; None also where rows were removed by another hand since."""
        held = txn.get(b"epoch")
        if held is None:
            return None
        if txn.get(b"keys") != _KEYS:
            raise self._file.damaged("its keys are those of another version")
        for name, db in self._file.tables.items():
            rows = txn.stat(db)["entries"]
            if txn.get(f"rows:{name}:count".encode()) != b"%d" % rows:
                raise self._file.damaged(f"table {name!r} has {rows} rows, not as many as it was left with")
        return int(held)

    def _finish(self, txn: Any, epoch: int) -> None:
        for name, db in self._file.tables.items():
            txn.put(f"rows:{name}:count".encode(), b"%d" % txn.stat(db)["entries"])
        txn.put(b"epoch", b"%d" % epoch)

    def _clear(self, txn: Any) -> None:
        self._claim(txn)
        txn.delete(b"epoch")
        for db in self._file.tables.values():
            txn.drop(db, delete=False)

    def _put(self, txn: Any, table: str, rows: TableRows, part: slice) -> None:
        txn.cursor(self._file.tables[table]).putmulti(pack(rows, part))

    def _remove(self, txn: Any, table: str, ids: NDArray[np.uint64]) -> None:
        for key in keys_of(ids):
            txn.delete(key, db=self._file.tables[table])

    def _behind(self, epoch: int | None, needed: int) -> StoreBehind:
        held = "holds nothing that can be trusted" if epoch is None else f"has applied epoch {epoch}"
        return StoreBehind(f"the store at {self._folder} {held}, needed is epoch {needed}")


def _parts(count: int) -> Iterator[slice]:
    return (slice(start, min(start + _ROWS_MAX, count)) for start in range(0, count, _ROWS_MAX))
