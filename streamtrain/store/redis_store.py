"""The row store on Redis, Valkey, or a Redis Cluster of them. `docs/store.md` specifies keys, values and scripts."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from streamtrain.errors import StoreBehind, StoreRefused, StoreUnavailable
from streamtrain.log.record import EpochRecord, TableRows
from streamtrain.sparse.turns import TICKETS
from streamtrain.store.checks import check_servers, memory
from streamtrain.store.node import Argument
from streamtrain.store.packing import (
    BYTES_MAX,
    ROWS_MAX,
    TICKET_BYTES,
    group,
    unpack_values,
    value_dtype,
    warm_up,
)
from streamtrain.store.router import Router
from streamtrain.store.scripts import APPLY, BEGIN, CLAIM, PULL, SCAN, STATE, Script
from streamtrain.store.settings import StoreSettings
from streamtrain.store.shares import Shares
from streamtrain.store.store import StoreDescription, StoreInfo, Unused

__all__ = ["RedisStore"]

Result = TypeVar("Result")

# A shard's epoch starts over when another writer took it, as a fenced one may until it notices; after a pause by chance,
# so that two of them do not keep overtaking each other in step.
_ATTEMPTS_MAX = 5
_PAUSE_S = 0.05


class RedisStore:
    """A `Store` on Redis. Made by `open_store`.

    Args:
      settings: where and how.

    Raises:
      ConfigError: the password cannot be read.
    """

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        self._router = Router(settings)
        self._description: StoreDescription | None = None

    async def open(self, description: StoreDescription) -> None:
        await asyncio.to_thread(warm_up)
        await self._router.connect()
        check_servers(await self._router.info())
        self._description = description
        await _all("claim", (self._claim(shard) for shard in range(description.shards)))

    async def close(self) -> None:
        await self._router.close()

    async def info(self) -> StoreInfo:
        return memory(await self._router.info())

    async def applied_epoch(self) -> int | None:
        epochs = (await self.applied_epochs()).values()
        known = [epoch for epoch in epochs if epoch is not None]
        return min(known) if len(known) == len(epochs) else None

    async def applied_epochs(self) -> dict[int, int | None]:
        answers = await _all("state", (self._run(STATE, shard) for shard in range(self._opened.shards)))
        # A shard that lost its claim (FLUSHALL) holds nothing; a repair claims it again.
        return {shard: _epoch(answer[1]) for shard, answer in enumerate(answers)}

    async def apply(self, record: EpochRecord) -> None:
        shares = await asyncio.to_thread(Shares, record, self._opened)
        await _all("apply", (self._apply_shard(shard, shares) for shard in range(self._opened.shards)))

    async def load_base(self, base: EpochRecord) -> None:
        shares = await asyncio.to_thread(Shares, base, self._opened)
        await _all("load", (self._load_shard(shard, shares) for shard in range(self._opened.shards)))

    async def pull(
        self, table: str, ids: NDArray[np.uint64], epoch_min: int = 0
    ) -> tuple[NDArray[np.bool_], TableRows]:
        value = value_dtype(*self._opened.tables[table])
        grouped = group(ids, self._opened.shards)
        chunk = max(1, min(ROWS_MAX, BYTES_MAX // value.itemsize))
        found = np.zeros(len(ids), np.bool_)
        values = np.empty(len(ids), value)

        async def pull_chunk(shard: int, index: NDArray[np.int64]) -> None:
            packed = ids[index].astype("<u8", copy=False).tobytes()
            _, _, present, blob = await self._read(PULL, shard, table, epoch_min, value.itemsize, packed)
            hit = np.frombuffer(present, np.uint8) == ord("1")
            if len(hit) != len(index) or len(blob) != value.itemsize * np.count_nonzero(hit):
                raise StoreUnavailable(
                    f"shard {shard} of the store answered {len(hit)} of {len(index)} ids; is something between "
                    "this process and Redis that changes answers?"
                )
            found[index] = hit
            values[index[hit]] = np.frombuffer(blob, value)

        chunks = (
            pull_chunk(shard, index[start : start + chunk])
            for shard, index in enumerate(map(grouped.shard, range(self._opened.shards)))
            for start in range(0, len(index), chunk)
        )
        await _all("pull", chunks)
        return found, unpack_values(ids[found], values[found])

    async def scan(
        self, table: str, tickets: tuple[int, int], unused: Unused | None, epoch_min: int
    ) -> TableRows:
        value = value_dtype(*self._opened.tables[table])
        count = max(1, min(ROWS_MAX, BYTES_MAX // value.itemsize))
        end = b"+" if tickets[1] == TICKETS else b"(" + tickets[1].to_bytes(TICKET_BYTES, "big")
        which = (b"-", b"-") if unused is None else (unused.step, unused.steps)

        async def scan_shard(shard: int) -> tuple[bytes, bytes]:
            ids, values, start = [], [], b"[" + tickets[0].to_bytes(TICKET_BYTES, "big")
            while start != b"(":
                answer = await self._read(
                    SCAN, shard, table, epoch_min, value.itemsize, start, end, count, *which
                )
                ids.append(answer[2])
                values.append(answer[3])
                start = b"(" + answer[4]
            return b"".join(ids), b"".join(values)

        held = await _all("scan", (scan_shard(shard) for shard in range(self._opened.shards)))
        ids, values = (b"".join(parts) for parts in zip(*held, strict=True))
        return unpack_values(np.frombuffer(ids, "<u8"), np.frombuffer(values, value))

    @property
    def _opened(self) -> StoreDescription:
        assert self._description is not None, "open comes first"
        return self._description

    async def _claim(self, shard: int) -> None:
        description = self._opened
        # Says also by what they are ordered: a store whose order is that of another version is filled again.
        scanned = f"tickets:{','.join(sorted(description.scanned))}" if description.scanned else ""
        status, held = await self._run(CLAIM, shard, description.text(), scanned)
        if status == b"mismatch":
            raise StoreRefused(f"shard {shard} of the store {description.refusal(held)}, or {self._removal}")

    async def _apply_shard(self, shard: int, shares: Shares) -> None:
        for attempt in range(_ATTEMPTS_MAX):
            if await self._write(shard, shares, "apply", secrets.token_hex(8)):
                return
            await _pause(attempt)
        raise _overtaken(shard, shares.epoch)

    async def _load_shard(self, shard: int, shares: Shares) -> None:
        for attempt in range(_ATTEMPTS_MAX):
            await self._claim(shard)
            token = secrets.token_hex(8)
            status, epoch = await self._run(BEGIN, shard, shares.epoch, token)
            if status == b"already":
                return
            if status == b"stale":
                raise StoreRefused(
                    f"shard {shard} of the store is being loaded with the base of epoch {epoch}, newer than this process's "
                    f"{shares.epoch}: another process writes to this store, stop one of them; or, where there is none, "
                    f"the log is older than the store, and you may {self._removal}"
                )
            if status == b"ok" and await self._write(shard, shares, "load", token):
                return
            await _pause(attempt)
        raise _overtaken(shard, shares.epoch)

    async def _write(self, shard: int, shares: Shares, mode: str, token: str) -> bool:
        """Writes a shard's parts in order. False: another writer, or FLUSHALL, came in between; start again."""
        parts = shares.parts(shard)
        for number, part in enumerate(parts):
            arguments = await asyncio.to_thread(shares.arguments, shard, part)
            last = int(number == len(parts) - 1)
            status, epoch = await self._run(APPLY, shard, mode, shares.epoch, number, last, token, *arguments)
            if status == b"already":
                return True
            if status == b"lost" or (status == b"unclaimed" and mode == "load"):
                return False
            if status in (b"behind", b"unclaimed"):
                raise _behind(shard, _epoch(epoch), shares.epoch - 1)
        return True

    async def _read(
        self, script: Script, shard: int, table: str, epoch_min: int, value_bytes: int, *arguments: Argument
    ) -> list[Any]:
        answer = await self._run(script, shard, epoch_min, value_bytes, *arguments, table=table)
        if answer[0] in (b"behind", b"unclaimed"):
            raise _behind(shard, _epoch(answer[1]), epoch_min)
        if answer[0] == b"damaged":
            key = self._rows(shard, table)
            raise StoreRefused(
                f"{key} in the store has a value of {answer[1]} bytes where a row of table {table!r} has {value_bytes}: "
                f"another program wrote it. Remove the key (redis-cli UNLINK {key!r}); it is then repaired from the log"
            )
        return answer

    async def _run(self, script: Script, shard: int, *arguments: Any, table: str | None = None) -> list[Any]:
        description = self._opened
        tables = sorted(description.tables) if table is None else [table]
        keys = [self._meta(shard), *(self._rows(shard, name) for name in tables)]
        answer = await script.run(self._router, keys, description.model_id, *arguments)
        if answer[0] == b"foreign":
            raise StoreRefused(
                f"shard {shard} of the store holds rows of model {answer[1].decode(errors='replace')!r}, this is model "
                f"{description.model_id!r}; name another database in store.url, or {self._removal}"
            )
        return answer

    @property
    def _removal(self) -> str:
        pattern = f"streamtrain:{{{self._opened.model_id[:12]}.*"
        return f"remove the rows (they are only a copy): redis-cli --scan --pattern '{pattern}' | xargs redis-cli UNLINK"

    def _tag(self, shard: int) -> str:
        return f"streamtrain:{{{self._opened.model_id[:12]}.{shard}}}"

    def _meta(self, shard: int) -> str:
        return f"{self._tag(shard)}:meta"

    def _rows(self, shard: int, table: str) -> str:
        return f"{self._tag(shard)}:rows:{table}"


def _epoch(answer: int) -> int | None:
    return None if answer < 0 else answer


def _behind(shard: int, held: int | None, needed: int) -> StoreBehind:
    state = "holds nothing that can be trusted" if held is None else f"has applied epoch {held}"
    return StoreBehind(
        f"shard {shard} of the store {state}, needed is epoch {needed}; it is repaired from the log"
    )


async def _pause(attempt: int) -> None:
    await asyncio.sleep(random.uniform(0, _PAUSE_S * 2**attempt))


def _overtaken(shard: int, epoch: int) -> StoreUnavailable:
    return StoreUnavailable(
        f"another process keeps writing epoch {epoch} to shard {shard} of the store; stop one of them if it stays"
    )


async def _all(name: str, calls: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Runs the calls at once, each to its end, so that one shard's failure leaves the others complete.

    Connections bound what is in flight. Raises the gravest error: refused, then unavailable, then behind. Cancelled,
    it cancels the calls and waits until their connections are gone.
    """
    tasks = [asyncio.create_task(call, name=f"store {name}") for call in calls]
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    if errors:
        raise min(errors, key=_gravity)
    return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]


def _gravity(error: BaseException) -> int:
    order = (StoreRefused, StoreUnavailable, StoreBehind)
    # What is none of these is a bug or a cancellation, and comes first.
    return next((i for i, kind in enumerate(order) if isinstance(error, kind)), -1)
