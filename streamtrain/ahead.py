"""One stage of a pipeline that works ahead of the stage behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Generic, TypeVar

from streamtrain.stages import Stages

__all__ = ["Ahead"]

T = TypeVar("T")


class Ahead(Generic[T]):
    """Makes items in a task of its own, in order, up to `items_max` of them ahead of who takes them. An async context manager.

    The end, or the fault that ended it, reaches the taker behind all items that were made before: a stage that fails early
    changes nothing of what the stages behind it see. Leaving the context cancels the task: items that were not taken
    are given up.

    Args:
      make: gives the next item; None at the end.
      items_max: items that may wait to be taken; one more is being made.
      stage: its name.
      stages: told how long it waits for room.
    """

    def __init__(
        self, make: Callable[[], Awaitable[T | None]], items_max: int, stage: str, stages: Stages
    ) -> None:
        self._make, self._stage, self._stages = make, stage, stages
        self._made: asyncio.Queue[T | BaseException | None] = asyncio.Queue(items_max)

    async def __aenter__(self) -> Ahead[T]:
        self._task = asyncio.create_task(self._run(), name=self._stage)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def take(self) -> T | None:
        """The next item; None at the end, which comes once. Cancelling it loses nothing.

        Raises: what `make` raised, behind the items before it.
        """
        made = await self._made.get()
        if isinstance(made, BaseException):
            raise made
        return made

    async def _run(self) -> None:
        made: T | BaseException | None
        while True:
            try:
                made = await self._make()
            except (Exception, asyncio.CancelledError) as error:
                # A cancellation that nobody asked for is a fault like others: the taker must not wait for ever.
                if (this := asyncio.current_task()) is not None and this.cancelling():
                    raise
                made = error
            with self._stages.waits(self._stage, "room"):
                await self._made.put(made)
            if made is None or isinstance(made, BaseException):
                return
