"""Puts the scheduler under the product's code: its threads become fibers, its locks and clocks the world's.

Only the names `threading`, `queue`, `time`, `asyncio` and executors of the modules below are replaced, so what runs
is the code that ships.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest import mock

import exporters.delta_fold
import exporters.deltas
import streamtrain.log.lock_file
import streamtrain.log.reader
import streamtrain.log.readers
import streamtrain.restorer
import streamtrain.standby
import streamtrain.store.applier
import streamtrain.store.patience
import streamtrain.training.committer
import streamtrain.training.trainer
from tests.simulation.scheduler import Died, Scheduler

__all__ = ["EPOCH_S", "drive", "running", "within", "woven"]

Result = TypeVar("Result")

EPOCH_S = 1_700_000_000.0

_scheduler: Scheduler | None = None


def running() -> Scheduler:
    """The world that runs in this process."""
    assert _scheduler is not None, "nothing runs"
    return _scheduler


@contextlib.contextmanager
def woven(patches: Sequence[tuple[Any, str, Any]] = ()) -> Iterator[None]:
    """The product's code belongs to the world that runs (`within`) inside; `patches` (module, name, fake) are added."""
    with contextlib.ExitStack() as stack:
        for target, name, fake in (*_PATCHES, *patches):
            stack.enter_context(mock.patch.object(target, name, fake))
        yield


@contextlib.contextmanager
def within(scheduler: Scheduler) -> Iterator[None]:
    """`scheduler` is the world that runs."""
    global _scheduler
    _scheduler = scheduler
    try:
        yield
    finally:
        _scheduler = None


def drive(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Runs a coroutine in this fiber: what it awaits blocks the fiber alone."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    raise AssertionError("a coroutine awaited something that the simulation does not know")


class _Lock:
    def __init__(self) -> None:
        self._held = False

    def __enter__(self) -> None:
        scheduler = running()
        while self._held:
            scheduler.wait(lambda: not self._held)
        self._held = True

    def __exit__(self, *_: object) -> None:
        self._held = False

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        self.__exit__()


class _Event:
    def __init__(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        return self._set or running().wait(self.is_set, timeout)


class _Queue:
    def __init__(self, maxsize: int) -> None:
        self._items: deque[Any] = deque()
        self._maxsize = maxsize

    def put(self, item: Any) -> None:
        running().wait(lambda: len(self._items) < self._maxsize)
        self._items.append(item)

    def get(self) -> Any:
        running().wait(lambda: bool(self._items))
        return self._items.popleft()


class _Thread:
    def __init__(self, target: Callable[[], object], name: str, daemon: bool = False) -> None:
        self._target, self._name = target, name

    def start(self) -> None:
        scheduler = running()
        self._fiber = scheduler.spawn(scheduler.current.process, self._name, self._target)

    def join(self) -> None:
        running().wait(lambda: self._fiber.done)


class _Executor:
    """One fiber per job. A job of a process that dies never ends."""

    def __init__(self, max_workers: int, name: str) -> None:
        self._jobs: list[Future[Any]] = []

    def submit(self, job: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._jobs.append(future)

        def run() -> None:
            try:
                future.set_result(job(*arguments))
            except Died:
                raise
            except BaseException as error:
                future.set_exception(error)

        scheduler = running()
        scheduler.spawn(scheduler.current.process, "export fold", run)
        return future

    def shutdown(self, wait: bool = True) -> None:
        _wait(self._jobs)


def _wait(futures: Sequence[Future[Any]]) -> None:
    running().wait(lambda: all(future.done() for future in futures))


class _Os:
    """The system's calls; what a process has open is closed when it dies."""

    def __init__(self) -> None:
        self._open: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, *arguments: Any) -> int:
        descriptor = os.open(*arguments)
        self._open.add(descriptor)
        running().current.process.cleanups.append(lambda: self.close(descriptor))
        return descriptor

    def close(self, descriptor: int) -> None:
        if descriptor in self._open:
            self._open.remove(descriptor)
            os.close(descriptor)


async def _to_thread(call: Callable[..., Result], *arguments: Any) -> Result:
    running().point()
    return call(*arguments)


async def _sleep(seconds: float) -> None:
    running().sleep(seconds)


def _now() -> float:
    return running().now


_THREADING = SimpleNamespace(Lock=_Lock, Event=_Event, Thread=_Thread)
_TIME = SimpleNamespace(
    monotonic=_now,
    perf_counter=_now,
    time=lambda: EPOCH_S + _now(),
    time_ns=lambda: int((EPOCH_S + _now()) * 1e9),
)
_PATCHES: list[tuple[Any, str, Any]] = [
    (streamtrain.training.trainer, "threading", _THREADING),
    (streamtrain.training.trainer, "time", _TIME),
    (streamtrain.training.committer, "threading", _THREADING),
    (streamtrain.training.committer, "queue", SimpleNamespace(Queue=_Queue)),
    (streamtrain.training.committer, "time", _TIME),
    (streamtrain.log.reader, "threading", _THREADING),
    (
        streamtrain.store.applier,
        "asyncio",
        SimpleNamespace(Lock=_Lock, Event=asyncio.Event, to_thread=_to_thread),
    ),
    (streamtrain.store.patience, "asyncio", SimpleNamespace(sleep=_sleep)),
    (exporters.deltas, "threading", _THREADING),
    (exporters.deltas, "ThreadPoolExecutor", _Executor),
    (exporters.deltas, "wait", _wait),
    (streamtrain.log.lock_file, "os", _Os()),
    (streamtrain.log.readers, "threading", _THREADING),
    (streamtrain.restorer, "ahead", iter),
    (streamtrain.standby, "asyncio", SimpleNamespace(to_thread=_to_thread)),
    (exporters.delta_fold, "_yield_to_others", lambda: None),
]
