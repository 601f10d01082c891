"""Brings the store up to date with the epoch log: may be stopped at any instant and called again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from streamtrain.errors import EpochMissing, StoreBehind, StoreRefused, StoreUnavailable, StreamtrainError
from streamtrain.log.record import EpochRecord
from streamtrain.log.shared import Epochs
from streamtrain.store.store import Store

__all__ = ["StoreApplier", "StoreStatus"]

logger = logging.getLogger(__name__)

_ROUNDS_MAX = 4
_PROGRESS_EPOCHS = 100


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """Where the store stands, for metrics and readiness.

    Attributes:
      applied_epoch: every shard has it; None before the first success.
      last_error: why the store does not answer, or None while it does.
      since: wall clock, seconds since 1970, when it began (or ceased) to answer.
      errors: failures so far.
      repairs: bases loaded so far.
    """

    applied_epoch: int | None = None
    last_error: str | None = None
    since: float = 0.0
    errors: int = 0
    repairs: int = 0


class StoreApplier:
    """Applies committed epochs to the store, in order, one by one.

    Args:
      log: where they are read from.
      store: open.
      clock: wall clock, seconds since 1970.
    """

    def __init__(self, log: Epochs, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._log, self._store, self._clock = log, store, clock
        self.status = StoreStatus(since=clock())
        self._turn = asyncio.Lock()
        self._moved = asyncio.Event()

    async def catch_up(self, to_epoch: int) -> int:
        """Brings every shard to `to_epoch`, repairing shards that lack more than the log's epochs.

        Cancelled or failed, it leaves a prefix applied; called again, it goes on from there.

        Args:
          to_epoch: a committed epoch.

        Returns:
          The epoch that every shard has: `to_epoch`, or a later one where the store was further already.

        Raises:
          StoreUnavailable: the store does not answer, or loses rows as fast as they are repaired.
          StoreRefused: the store is misconfigured, or is ahead of the log.
          CorruptRecord, EpochMissing: the log cannot repair the store.
        """
        # What the store had when last seen; a shard that lost it since answers StoreBehind.
        async with self._turn:
            return await self._reporting(to_epoch, self.status.applied_epoch)

    async def repair(self, to_epoch: int) -> int:
        """As `catch_up`, but asks every shard what it holds, though nothing new may be there to apply.

        For one who met StoreBehind in `Store.pull`: a store that lost rows while no epoch follows is noticed by readers
        alone.
        """
        async with self._turn:
            return await self._reporting(to_epoch, None)

    async def beyond(self, epoch: int) -> None:
        """Waits until the store has applied an epoch that is newer than `epoch`."""
        while self.status.applied_epoch is None or self.status.applied_epoch <= epoch:
            await self._moved.wait()

    async def _reporting(self, to_epoch: int, applied: int | None) -> int:
        try:
            applied = await self._catch_up(to_epoch, applied)
        except StreamtrainError as error:
            self._failed(error)
            raise
        self._succeeded(applied)
        return applied

    async def _catch_up(self, to_epoch: int, applied: int | None) -> int:
        for _ in range(_ROUNDS_MAX):
            if applied is None:
                applied = await self._ask_or_repair()
            try:
                await self._apply(applied + 1, to_epoch)
            except StoreBehind as error:
                logger.warning("the store lost rows and is repaired from the log: %s", error)
                applied = None
            except EpochMissing:
                # The epochs since were folded into a base and collected; a base that is no newer is no help.
                if await self._load_newest_base() <= applied:
                    raise
                applied = None
            else:
                return max(applied, to_epoch)
        raise StoreUnavailable(
            f"the store does not keep what is written to it: {_ROUNDS_MAX} repairs in a row were undone; "
            "look for a second writer, a FLUSHALL, or failovers of its Redis"
        )

    async def _apply(self, first: int, last: int) -> None:
        for epoch in range(first, last + 1):
            await self._store.apply(await asyncio.to_thread(self._log.read, epoch))
            self._succeeded(epoch)
            if epoch % _PROGRESS_EPOCHS == 0 and epoch != last:
                logger.info("the store has applied epoch %d of %d", epoch, last)

    async def _ask_or_repair(self) -> int:
        """The smallest epoch that a shard has, after a repair of those that have none."""
        held = await self._held()
        if None in held:
            await self._load_newest_base()
            held = await self._held()
        # None again: lost since the repair. Applying epoch 0 finds that out.
        return min(-1 if epoch is None else epoch for epoch in held)

    async def _held(self) -> set[int | None]:
        held = set((await self._store.applied_epochs()).values())
        head = await asyncio.to_thread(self._log.head)
        newest = max((epoch for epoch in held if epoch is not None), default=-1)
        if newest > (-1 if head is None else head):
            raise StoreRefused(
                f"the store has applied epoch {newest}, but the log ends at {head}: the log is older than the store "
                "(restored from a backup?) or another's. Bring back the log, or remove the store's rows "
                "(docs/store.md, Removing a model) and they are filled from this log"
            )
        return held

    async def _load_newest_base(self) -> int:
        """Repairs with the newest base; a log that has none yet still has epoch 0, which is a whole model too.

        Returns:
          The base's epoch.
        """
        base = await self._newest_base()
        logger.info("repairing the store with the model as of epoch %d", base.epoch)
        await self._store.load_base(base)
        self.status = replace(self.status, repairs=self.status.repairs + 1)
        return base.epoch

    async def _newest_base(self) -> EpochRecord:
        listed: int | None = None
        while True:
            bases = await asyncio.to_thread(self._log.bases)
            newest, before = max(bases, default=0), listed
            try:
                return await asyncio.to_thread(self._log.read_base if bases else self._log.read, newest)
            except EpochMissing:
                # Collected since it was listed: then there is a newer one.
                if newest == before:
                    raise
                listed = newest

    def _succeeded(self, epoch: int) -> None:
        since = self.status.since if self.status.last_error is None else self._clock()
        self.status = replace(self.status, applied_epoch=epoch, last_error=None, since=since)
        self._moved.set()
        self._moved = asyncio.Event()

    def _failed(self, error: Exception) -> None:
        since = self.status.since if self.status.last_error is not None else self._clock()
        errors = self.status.errors + 1
        self.status = replace(self.status, last_error=str(error), since=since, errors=errors)
