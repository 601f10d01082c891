"""An event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["LoopThread"]

_T = TypeVar("_T")


class LoopThread:
    """Runs coroutines for another loop, so that work there never delays the connections here, nor the reverse."""

    def __init__(self, name: str) -> None:
        self._runner = asyncio.Runner()
        self._loop = self._runner.get_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    async def call(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Awaits a coroutine that runs in the thread. Cancelling the call cancels it there."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._loop))

    def soon(self, callback: Callable[..., object], *arguments: Any) -> None:
        """Calls a function in the thread; from any thread, without waiting."""
        self._loop.call_soon_threadsafe(callback, *arguments)

    def stop(self) -> None:
        """Cancels what still runs, closes the loop and joins the thread. Blocks shortly; nothing may call it after."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.set_event_loop(self._loop)
            self._loop.run_forever()
        finally:
            # Cancels and awaits the tasks that are left.
            self._runner.close()
