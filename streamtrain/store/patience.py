"""Reads of the store that are tried until they are answered: learning pauses, it never goes on with what is not so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from streamtrain.errors import StoreBehind, StoreUnavailable
from streamtrain.metrics import Metrics
from streamtrain.store.applier import StoreApplier
from streamtrain.store.progress import Progress

__all__ = ["Patience"]

logger = logging.getLogger(__name__)

_PAUSE_FIRST_S, _PAUSE_MAX_S = 0.1, 5.0

Result = TypeVar("Result")


class Patience:
    """Reads from a store that may lose its rows, or be away.

    Args:
      applier: repairs a shard that lost its rows.
      progress: its epoch is what the store must have.
      metrics: counts.
    """

    def __init__(self, applier: StoreApplier, progress: Progress, metrics: Metrics) -> None:
        self._applier, self._progress, self._metrics = applier, progress, metrics

    async def insist(self, read: Callable[[int], Awaitable[Result]]) -> Result:
        """What `read` answers, which takes the epoch that the store must have. It may be cancelled.

        Raises: what is neither StoreBehind nor StoreUnavailable.
        """
        pause_s = _PAUSE_FIRST_S
        while True:
            try:
                return await read(self._progress.epoch)
            except (StoreBehind, StoreUnavailable) as error:
                if pause_s == _PAUSE_FIRST_S:
                    logger.warning("training pauses, rows cannot be pulled: %s", error)
                self._metrics.store_errors.inc()
                await self._mend(error, pause_s)
                pause_s = min(pause_s * 2, _PAUSE_MAX_S)

    async def _mend(self, error: StoreBehind | StoreUnavailable, pause_s: float) -> None:
        """Repairs a shard that lost rows; waits for a store that does not answer."""
        if isinstance(error, StoreBehind):
            try:
                await self._applier.repair(self._progress.epoch)
                logger.warning("the store was repaired from the log, training goes on")
                return
            except StoreUnavailable:
                pass
        await asyncio.sleep(pause_s)
