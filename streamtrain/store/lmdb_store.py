"""The row store on a local disk, for those without Redis. `docs/store.md` specifies its file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import lmdb
import numpy as np
from numpy.typing import NDArray

from streamtrain.errors import StoreRefused, StoreUnavailable
from streamtrain.log.lock_file import LockFile, LockHeld
from streamtrain.log.record import EpochRecord, TableRows
from streamtrain.sparse.cold import joined
from streamtrain.store.lmdb_packing import key_of
from streamtrain.store.lmdb_rows import LmdbRows
from streamtrain.store.settings import StoreSettings
from streamtrain.store.store import StoreDescription, StoreInfo, Unused

__all__ = ["LmdbStore"]

Result = TypeVar("Result")


class LmdbStore:
    """A `Store` in a directory, which one process has to itself. Made by `open_store`.

    Its shards are one file: they have the same epoch, and an epoch is one transaction. It writes in a thread of its
    own and reads in another, which sees the epoch before the one being written. A call that is cancelled goes on in
    its thread to its end, so that it is done whole or not at all.

    Args:
      settings: where, and how large.
    """

    def __init__(self, settings: StoreSettings) -> None:
        self._parent, self._bytes_max = Path(settings.endpoint.path), settings.disk_bytes_max
        self._writer, self._reader = ThreadPoolExecutor(1, "lmdb-write"), ThreadPoolExecutor(1, "lmdb-read")
        self._lock: LockFile | None = None
        self._opened: tuple[LmdbRows, StoreDescription] | None = None

    async def open(self, description: StoreDescription) -> None:
        folder = self._parent / description.model_id[:12]
        await self._run(self._writer, lambda: self._take(folder))
        rows = LmdbRows(folder, self._bytes_max)
        self._opened = rows, description
        await self._run(self._writer, lambda: rows.open(description))

    def _take(self, folder: Path) -> None:
        if self._lock is not None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock, _ = LockFile.take(folder / "owner.lock")
        except LockHeld as error:
            raise StoreRefused(
                f"the store at {folder} is in use by another process ({error}): it is for one daemon; stop that one, "
                "or name a directory of this daemon's own in store.url"
            ) from error
        except OSError as error:
            raise StoreUnavailable(f"the store at {folder} cannot be opened: {error}") from error

    async def applied_epochs(self) -> dict[int, int | None]:
        rows, description = self._held
        epoch = await self._run(self._writer, rows.epoch)
        return dict.fromkeys(range(description.shards), epoch)

    async def applied_epoch(self) -> int | None:
        return await self._run(self._writer, self._held[0].epoch)

    async def apply(self, record: EpochRecord) -> None:
        await self._run(self._writer, lambda: self._held[0].apply(record))

    async def load_base(self, base: EpochRecord) -> None:
        await self._run(self._writer, lambda: self._held[0].load_base(base))

    async def pull(
        self, table: str, ids: NDArray[np.uint64], epoch_min: int = 0
    ) -> tuple[NDArray[np.bool_], TableRows]:
        return await self._run(self._reader, lambda: self._held[0].pull(table, ids, epoch_min))

    async def scan(
        self, table: str, tickets: tuple[int, int], unused: Unused | None, epoch_min: int
    ) -> TableRows:
        parts: list[TableRows] = []
        key: bytes | None = key_of(tickets[0])
        while key is not None:
            # One piece at a time: what a chunk waits for comes in between.
            piece = partial(self._held[0].scan, table, key, tickets[1], unused, epoch_min)
            rows, key = await self._run(self._reader, piece)
            parts.append(rows)
        return joined(parts)

    async def info(self) -> StoreInfo:
        used = await self._run(self._reader, self._held[0].used_bytes)
        version = ".".join(map(str, lmdb.version()))
        return StoreInfo(version, servers=1, memory_bytes=used, memory_bytes_max=self._bytes_max)

    async def close(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            await self._run(self._writer, opened[0].close)
        for executor in (self._writer, self._reader):
            executor.shutdown(wait=False)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def _held(self) -> tuple[LmdbRows, StoreDescription]:
        assert self._opened is not None, "open comes first"
        return self._opened

    @staticmethod
    async def _run(executor: ThreadPoolExecutor, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(executor, work)
