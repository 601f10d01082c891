"""Signs of life of a thread, for whoever watches it from another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Pulse"]


class Pulse:
    """How long a thread has been at one thing. It rests until the first beat: what has not begun cannot hang.

    Args:
      clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # One field, written by the watched thread alone: a watcher reads it whole, without a lock.
        self._at: float | None = None

    @property
    def silent_s(self) -> float:
        """Seconds since the last beat; 0 while the thread rests. From any thread."""
        at = self._at
        return 0.0 if at is None else max(0.0, self._clock() - at)

    def beat(self) -> None:
        """Something has ended, and the next thing begins."""
        self._at = self._clock()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """What goes on inside may take as long as it wants: it waits for something that says so by itself."""
        self._at = None
        try:
            yield
        finally:
            self.beat()

    def end(self) -> None:
        """The thread's work is over."""
        self._at = None
