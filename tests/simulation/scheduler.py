"""Runs blocking code as fibers, one at a time, in an order that a seed decides.

A fiber is a greenlet, of which one runs at a time. It gives way at `point` and `wait` alone, so a run is a function of
its seed, although what runs is the product's own threads, locks and queues (see `loom`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from greenlet import getcurrent, greenlet

__all__ = ["Died", "Fiber", "Process", "Scheduler", "Stuck"]

_PICKS_MAX = 8_000


class Died(BaseException):
    """The process is gone: nothing that it would do afterwards happens."""


class Stuck(Exception):
    """Nothing can run any more, or nothing ends."""


class Process:
    """Fibers that live and die together.

    Attributes:
      dead: killed, or gone by itself.
      paused_until: stopped (SIGSTOP) until then.
      cleanups: what the system does for the dead: closes descriptors, and so lets go of locks.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.paused_until = 0.0
        self.fibers: list[Fiber] = []
        self.cleanups: list[Callable[[], object]] = []
        self.on_error: Callable[[Fiber, BaseException], None] | None = None


class Fiber:
    """One thread of a process."""

    def __init__(self, process: Process, name: str, stack: greenlet) -> None:
        self.process, self.name, self.stack = process, name, stack
        self.ready: Callable[[], bool] | None = None
        self.deadline: float | None = None
        self.done = False
        self.return_to: Fiber | None = None


class Scheduler:
    """The world's clock, dice and order of events.

    Args:
      seed: decides everything.

    Attributes:
      now: seconds; moves at every switch.
      random: the dice of this world.
      failure: what ended the run, if anything did.
      parsed: what was parsed once, see `contents`.
      disk: the world's, once it is made.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._dice = self.random.random
        self.now = 1000.0
        self.failure: BaseException | None = None
        self.picks = 0
        self.parsed: dict[Any, Any] = {}
        self.disk: Any = None
        self.trace: list[tuple[float, str, str]] = []
        self.processes: list[Process] = []
        self._fibers: list[Fiber] = []
        self._main = Fiber(Process("main"), "main", getcurrent())
        self.current = self._main
        self._stopped = False
        # Some worlds switch at nearly every call, others rarely: both find faults that the other does not.
        self._switch_share = self.random.choice([0.02, 0.1, 0.4])

    def say(self, event: str) -> None:
        """Notes an event for the trace."""
        self.trace.append((self.now, f"{self.current.process.name}/{self.current.name}", event))

    # Called by the fiber that runs

    def point(self) -> None:
        """Others may run here. Raises Died where the process is gone."""
        fiber = self.current
        if fiber.process.dead:
            raise Died
        if fiber is not self._main and self._dice() < self._switch_share:
            self._switch(fiber)

    def wait(self, ready: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Runs others until `ready` or the time is over; whether it is ready."""
        fiber = self.current
        if fiber.process.dead:
            raise Died
        fiber.ready, fiber.deadline = ready, None if timeout_s is None else self.now + timeout_s
        self._switch(fiber)
        fiber.ready, fiber.deadline = None, None
        return ready()

    def sleep(self, seconds: float) -> None:
        self.wait(_never, seconds)

    def spawn(self, process: Process, name: str, body: Callable[[], object]) -> Fiber:
        """A new fiber, which runs when its turn comes."""
        fiber = Fiber(process, name, greenlet(lambda *_: self._life(fiber, body), self._main.stack))
        if not process.fibers:
            self.processes.append(process)
        process.fibers.append(fiber)
        self._fibers.append(fiber)
        return fiber

    def kill(self, process: Process) -> None:
        """Ends a process where it stands; its other fibers unwind at once, without effect."""
        me = self.current
        process.dead = True
        for fiber in list(process.fibers):
            if fiber is not me and not fiber.done:
                fiber.return_to, self.current = me, fiber
                fiber.stack.switch()
                self.current = me
        for cleanup in reversed(process.cleanups):
            cleanup()
        process.cleanups.clear()

    def fail(self, error: BaseException) -> None:
        """Ends the run: an invariant does not hold."""
        if self.failure is None:
            self.failure = error
            self.say(f"FAILED: {type(error).__name__}: {error}")
        self._stopped = True

    def finish(self) -> None:
        """Ends the run well."""
        self._stopped = True

    # Called by the one who made it

    def run(self) -> None:
        """Runs until `finish`, or until something fails; then everything is dead."""
        successor = self._pick()
        while successor is not self._main:
            self.current = successor
            # Comes back with the successor of a fiber that has ended: those that live switch to one another.
            successor = successor.stack.switch()
        self.current = self._main
        for process in self.processes:
            self.kill(process)

    # Taking turns

    def _life(self, fiber: Fiber, body: Callable[[], object]) -> Fiber:
        try:
            if not fiber.process.dead:
                body()
        except Died:
            pass
        except BaseException as error:
            self._ended_badly(fiber, error)
        fiber.done = True
        fiber.process.fibers.remove(fiber)
        self._fibers.remove(fiber)
        return fiber.return_to or self._pick()

    def _ended_badly(self, fiber: Fiber, error: BaseException) -> None:
        try:
            if fiber.process.on_error is None:
                raise error
            fiber.process.on_error(fiber, error)
        except BaseException as failure:
            self.fail(failure)

    def _switch(self, fiber: Fiber) -> None:
        successor = self._pick()
        if successor is not fiber:
            self.current = successor
            successor.stack.switch(successor)
        if fiber.process.dead:
            raise Died

    def _pick(self) -> Fiber:
        """Who runs next. Time goes on a little; where nobody can run, to when somebody can."""
        self.picks += 1
        if self.picks > _PICKS_MAX:
            self.fail(Stuck(f"no end after {_PICKS_MAX} switches"))
        self.now += self._dice() * 0.002
        while not self._stopped:
            if able := self._able():
                return able[int(self._dice() * len(able))]
            self._jump()
        return self._main

    def _able(self) -> list[Fiber]:
        now, able = self.now, []
        for fiber in self._fibers:
            ready = fiber.ready
            if ready is _never:
                able_now = fiber.deadline is not None and fiber.deadline <= now
            else:
                able_now = ready is None or ready() or (fiber.deadline is not None and fiber.deadline <= now)
            if able_now and fiber.process.paused_until <= now:
                able.append(fiber)
        return able

    def _jump(self) -> None:
        times = [f.process.paused_until for f in self._fibers if f.process.paused_until > self.now]
        times += [f.deadline for f in self._fibers if f.deadline is not None and f.deadline > self.now]
        if times:
            self.now = min(times)
        else:
            waiting = ", ".join(f"{f.process.name}/{f.name}" for f in self._fibers)
            self.fail(Stuck(f"nothing can run any more: {waiting or 'nobody is left'}"))


def _never(*_: Any) -> bool:
    return False
