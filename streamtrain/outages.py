"""Outlasting a store that does not answer: losing it costs time, not learning."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from streamtrain.errors import StoreUnavailable
from streamtrain.health import Health
from streamtrain.metrics import Metrics

__all__ = ["outlasted"]

logger = logging.getLogger(__name__)

_PAUSE_FIRST_S, _PAUSE_MAX_S = 0.1, 5.0
_TOLD_EVERY_S = 60.0

_T = TypeVar("_T")


async def outlasted(attempt: Callable[[], Awaitable[_T]], health: Health, metrics: Metrics) -> _T:
    """What `attempt` answers, however long the store takes. Cancelling it ends the waiting.

    Args:
      attempt: asks the store, and may be called again after StoreUnavailable. Whatever else it raises, a store that refuses
        above all (its policy, a password), is raised at once.
      health: says meanwhile what is waited for.
      metrics: count each failure.
    """
    loop, phase = asyncio.get_running_loop(), health.phase
    pause_s, told_at = _PAUSE_FIRST_S, -_TOLD_EVERY_S
    while True:
        try:
            answer = await attempt()
        except StoreUnavailable as error:
            health.say("waiting for the store")
            metrics.store_errors.inc()
            if loop.time() - told_at >= _TOLD_EVERY_S:
                logger.warning("the start waits for the store: %s", error)
                told_at = loop.time()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)
        else:
            if health.phase != phase:
                logger.warning("the store answers, the start goes on")
                health.say(phase)
            return answer
