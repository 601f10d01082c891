"""A read-write lock for many short readers and one writer that must not wait behind them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["PhaseFairLock"]


class PhaseFairLock:
    """Read and write phases take turns while both sides wait, so neither starves.

    A waiting writer keeps new readers out; when it leaves, every reader that waits at that moment goes
    before the next writer. Without the second half, a follower that catches up on many deltas could take
    the lock again before a woken reader gets to run.

    Not re-entrant: a thread that reads must not read again, since a writer may be waiting in between.

    Source: Brandenburg and Anderson, Reader-Writer Synchronization for Shared-Memory Multiprocessor
    Real-Time Systems, ECRTS 2009.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers = 0
        self._readers_waiting = 0
        self._readers_admitted = 0  # Of those that wait: may go in although a writer waits.
        self._writers_waiting = 0
        self._writing = False

    @contextmanager
    def read(self) -> Iterator[None]:
        """Holds the lock together with other readers."""
        with self._changed:
            if self._writing or self._writers_waiting:
                self._wait_to_read()
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                if self._readers == 0:
                    self._changed.notify_all()

    def _wait_to_read(self) -> None:
        self._readers_waiting += 1
        try:
            self._changed.wait_for(
                lambda: self._readers_admitted > 0 or not (self._writing or self._writers_waiting)
            )
        finally:
            self._readers_waiting -= 1
            # Never more admitted than wait: a reader that gives up must not leave its ticket behind.
            self._readers_admitted = max(0, min(self._readers_admitted - 1, self._readers_waiting))
            if not self._readers_admitted:
                self._changed.notify_all()

    @contextmanager
    def write(self) -> Iterator[None]:
        """Holds the lock alone."""
        with self._changed:
            self._writers_waiting += 1
            try:
                self._changed.wait_for(
                    lambda: not self._writing and self._readers == 0 and self._readers_admitted == 0
                )
                self._writing = True
            finally:
                self._writers_waiting -= 1
                if not self._writing:
                    self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._writing = False
                self._readers_admitted = self._readers_waiting
                self._changed.notify_all()
