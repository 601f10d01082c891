"""Ownership as the daemon sees it: its methods run on the daemon's loop, the group's member on one of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from consumers.kafka.group import GroupMember
from consumers.kafka.loop_thread import LoopThread

__all__ = ["KafkaOwnership"]

_T = TypeVar("_T")


class KafkaOwnership:
    """An `Ownership` by a Kafka group.

    Its member runs in a thread of its own, so that a heartbeat waits neither for the daemon nor for a fetch.

    Args:
      member: makes the member; called on the thread's loop.
    """

    def __init__(self, member: Callable[[], GroupMember]) -> None:
        self._make = member
        self._thread: LoopThread | None = None
        self._member: GroupMember | None = None
        self._running: asyncio.Task[None] | None = None

    async def owned(self) -> None:
        """As `Ownership.owned`."""
        if self._thread is None:
            self._thread = LoopThread("kafka-group")
        await self._thread.call(self._owned())

    async def lost(self) -> str:
        """As `Ownership.lost`."""
        assert self._thread is not None, "it owned first"
        return await self._thread.call(self._lost())

    async def close(self) -> None:
        """As `Ownership.close`."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        try:
            await thread.call(self._leave())
        finally:
            await asyncio.to_thread(thread.stop)

    # On the thread's loop

    async def _owned(self) -> None:
        if self._member is None:
            self._member = self._make()
            self._running = asyncio.create_task(self._member.run(), name="kafka-group")
        await self._unless_ended(self._member.owned.wait())

    async def _lost(self) -> str:
        assert self._member is not None
        successor = self._member.successor

        async def wait() -> str:
            return await asyncio.shield(successor)

        return await self._unless_ended(wait())

    async def _unless_ended(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Waits for it, or raises what has ended the member."""
        assert self._running is not None
        waiting = asyncio.ensure_future(coroutine)
        try:
            await asyncio.wait({waiting, self._running}, return_when=asyncio.FIRST_COMPLETED)
            if self._running.done():
                self._running.result()
            return await waiting
        finally:
            waiting.cancel()

    async def _leave(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        if self._member is not None:
            await self._member.leave()
