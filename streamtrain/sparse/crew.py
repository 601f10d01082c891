"""Threads that help with the rows of a minibatch: kernels release the interpreter lock, so pieces of one loop run side by side.

Work is cut where no two pieces write the same memory and nothing that a piece computes depends on where the cuts are. So the
bits are the same for any number of threads, and for any order in which they come to it. Pieces are claimed one after the
other, by helpers and by the caller alike: a helper that the system does not run, or that waits for the interpreter lock,
keeps nobody waiting, because the caller then does its pieces too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

__all__ = ["beside", "pieces", "set_threads", "share", "worth_sharing"]

T = TypeVar("T")

LEAST = 4096
"""Rows a piece at least, some 100 us: fewer are done before a helper is awake."""

PIECES_A_THREAD = 2
"""More than one lets threads that began late, or whose piece was hard, do less."""


class _Job:
    """One loop, cut into pieces."""

    def __init__(self, work: Callable[[int, int], Any], bounds: Sequence[int]) -> None:
        self._work, self._bounds = work, bounds
        self._results: list[Any] = [None] * (len(bounds) - 1)
        self._error: BaseException | None = None
        self._lock, self._done = threading.Lock(), threading.Lock()
        self._claimed = self._finished = 0
        self._done.acquire()

    def help(self) -> None:
        """Does pieces until all are claimed."""
        while (piece := self._claim()) is not None:
            try:
                self._results[piece] = self._work(self._bounds[piece], self._bounds[piece + 1])
            except BaseException as error:
                # The caller raises it: a helper must go on to serve.
                self._error = error
            with self._lock:
                self._finished += 1
                if self._finished == len(self._results):
                    self._done.release()

    def _claim(self) -> int | None:
        with self._lock:
            if self._claimed == len(self._results):
                return None
            self._claimed += 1
            return self._claimed - 1

    def results(self) -> list[Any]:
        """Waits for the pieces that helpers have claimed."""
        self._done.acquire()
        if self._error is not None:
            raise self._error
        return self._results


class _Helper:
    """A thread that helps with the newest job that it was invited to. It ends with the process."""

    def __init__(self, number: int) -> None:
        self._job: _Job | None = None
        self._wake = threading.Lock()
        self._wake.acquire()
        threading.Thread(target=self._serve, name=f"kernels-{number}", daemon=True).start()

    def invite(self, job: _Job) -> None:
        self._job = job
        # Where it is released already, the helper has not come to the last invitation yet: this one is newer.
        with suppress(RuntimeError):
            self._wake.release()

    def _serve(self) -> None:
        while True:
            self._wake.acquire()
            job, self._job = self._job, None
            if job is not None:
                job.help()
            # Arrays of the job are not kept until the next one comes.
            job = None


_threads = 1
_helpers: list[_Helper] = []
_hiring = threading.Lock()


def set_threads(count: int) -> None:
    """From now on `count` >= 1 threads of this process share work, whoever calls; see the module for what that changes."""
    global _threads
    with _hiring:
        while len(_helpers) < count - 1:
            _helpers.append(_Helper(len(_helpers) + 1))
        _threads = count


def pieces(size: int, rows: int | None = None) -> list[int]:
    """Where to cut range(size): ascending bounds from 0 to `size`.

    Args:
      size: what is looped over.
      rows: the rows that are touched on the way. Default: `size`.
    """
    wanted = PIECES_A_THREAD * _threads if _threads > 1 else 1
    count = max(1, min(wanted, size, (size if rows is None else rows) // LEAST))
    return [size * piece // count for piece in range(count + 1)]


def worth_sharing(rows: int) -> bool:
    """Whether so many rows are worth waking a helper for, and there is one."""
    return _threads > 1 and rows >= LEAST


def beside(work: Callable[[], T]) -> Callable[[], T]:
    """Asks a helper to do `work` while the caller does something else, which shares no state with it.

    Returns:
      What waits for the work, or does it where no helper has come to it, and returns its result or raises its fault. To be
      called once, by this thread.
    """
    job = _Job(lambda first, end: work(), (0, 1))
    if _threads > 1:
        # The last to be asked to share what the caller does meanwhile.
        _helpers[_threads - 2].invite(job)

    def result() -> T:
        job.help()
        found: T = job.results()[0]
        return found

    return result


def share(work: Callable[[int, int], Any], bounds: Sequence[int]) -> list[Any]:
    """Calls `work(first, end)` for each two neighbours of `bounds`, in any order and on several threads at once.

    Returns:
      What each call returned, in the order of the bounds.

    Raises:
      Whatever one of the calls raised, after all of them have come to their end.
    """
    if len(bounds) == 2:
        return [work(bounds[0], bounds[1])]
    job = _Job(work, bounds)
    for helper in _helpers[: min(_threads, len(bounds) - 1) - 1]:
        helper.invite(job)
    job.help()
    return job.results()
