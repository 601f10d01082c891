"""What goes wrong: the dice choose among these, at times that they choose too."""

from __future__ import annotations

from collections.abc import Callable

from streamtrain.errors import (
    CorruptRecord,
    EpochMissing,
    ExportError,
    Fenced,
    LogError,
    StoreRefused,
    StoreUnavailable,
)
from tests.simulation.daemon import Daemon, World
from tests.simulation.follower import follow
from tests.simulation.reading import read_registered
from tests.simulation.scheduler import Fiber, Process

__all__ = ["Nemesis"]

_EIO_CALLS = ("sync", "sync_directory", "write", "link", "linked", "replace", "names", "open", "create")
_STRUCK_CALLS = ("create", "write", "patch", "sync", "linked", "sync_directory", "replace", "unlink")
# The instants at which most depends on the order: before an epoch gets its name, and among removals.
_STRUCK_CALLS += ("link", "link", "collected", "collected", "collected")


class Nemesis:
    """Starts, stops, kills and restarts everything, and cuts the power; then lets all of it come to rest.

    Args:
      world: its victim.
      fault_s: how long faults happen.

    Attributes:
      faults: by kind, how many.
    """

    def __init__(self, world: World, fault_s: float) -> None:
        self._world, self._scheduler = world, world.scheduler
        self._fault_s = fault_s
        self._daemons: list[Daemon] = []
        self._numbers = 0
        self._follower, self._reader = Process("follower"), Process("reader")
        self._follower.dead = self._reader.dead = True
        self._again_at = 0.0
        self._full_until = self._refusing_until = 0.0
        self.process = Process("nemesis")
        self.faults: dict[str, int] = {}
        self._menu: list[tuple[int, Callable[[], None]]] = [
            (6, self.kill_trainer),
            (2, self.stop_trainer),
            (3, self.pause_trainer),
            (4, self.second_trainer),
            (2, self.standby),
            (6, self.strike),
            (3, self.power_cut),
            (2, self.kill_fold),
            (2, self.disk_full),
            (2, self.disk_error),
        ]
        if world.settings.exports:
            self._menu.append((2, self.kill_follower))
        if world.settings.reader:
            self._menu.append((1, self.kill_reader))
        if world.settings.store:
            self._menu += [
                (2, self.store_flush),
                (2, self.store_snapshot),
                (2, self.store_restore),
                (2, self.store_unavailable),
                (3, self.store_late),
            ]

    def run(self) -> None:
        """Faults, then calm, then the last word."""
        scheduler, random = self._scheduler, self._scheduler.random
        end, pace = scheduler.now + self._fault_s, random.choice([0.2, 0.5, 1.0])
        weights, actions = [weight for weight, _ in self._menu], [action for _, action in self._menu]
        if self._world.settings.store:
            self._world.store.loss_share = random.choice([0.0, 0.02, 0.1])
        self._tend_views()
        while scheduler.now < end:
            self._tend()
            scheduler.sleep(random.random() * pace)
            random.choices(actions, weights)[0]()
        scheduler.say("calm")
        self._calm()
        self.faults["takeover"] = self._world.takeovers
        scheduler.finish()

    def _calm(self) -> None:
        """No more faults: a last trainer learns what is left and brings every view to the head."""
        world, scheduler = self._world, self._scheduler
        world.disk.full, world.disk.fail_next, world.disk.strike = False, None, None
        world.store.loss_share, world.store.refusing = 0.0, False
        for process in scheduler.processes:
            process.paused_until = 0.0
        # Whoever was paused wakes beside those that went on.
        scheduler.sleep(scheduler.random.random() * 0.3)
        while len(self._alive()) > 1:
            self._kill(self._alive()[0])
        self._tend_views()
        last: Daemon | None = None
        while last is None or not last.finished:
            if not self._alive():
                last = self._start(alone=True)
            scheduler.sleep(0.1)
        for process in world.folds:
            scheduler.wait(lambda process=process: not process.fibers)
        scheduler.sleep(1.0)
        world.oracle.check_end(world.exports_path)
        self._check_views()

    def _check_views(self) -> None:
        oracle, world = self._world.oracle, self._world
        if world.settings.store:
            for number, shard in enumerate(world.store.shards):
                assert shard.epoch == oracle.head, (
                    f"shard {number} ends at {shard.epoch}, the log at {oracle.head}"
                )
                oracle.shard_whole(number)
        if world.settings.exports:
            assert oracle.shown == oracle.head, (
                f"the follower ends at epoch {oracle.shown}, the log at {oracle.head}"
            )

    # Starting

    def _tend(self) -> None:
        scheduler = self._scheduler
        disk, store = self._world.disk, self._world.store
        disk.full, store.refusing = scheduler.now < self._full_until, scheduler.now < self._refusing_until
        if not self._alive() and scheduler.now >= self._again_at:
            self._start(alone=True)
        self._tend_views()

    def _tend_views(self) -> None:
        settings = self._world.settings
        if settings.exports and self._follower.dead:
            self._start_follower()
        if settings.reader and self._reader.dead:
            self._start_reader()

    def _alive(self) -> list[Daemon]:
        return [daemon for daemon in self._daemons if not daemon.process.dead]

    def _start(self, *, alone: bool, standby: bool = False) -> Daemon:
        self._numbers += 1
        daemon = Daemon(self._world, self._numbers, alone=alone, standby=standby)
        daemon.process.on_error = lambda fiber, error: self._ended(daemon, fiber, error)
        alive = self._alive()
        daemon.overlapped = bool(alive)
        for other in alive:
            other.overlapped = True
        self._daemons.append(daemon)
        self._scheduler.say(
            f"starts {daemon.process.name}"
            + ("" if alone else " as a standby" if standby else " beside another")
        )
        daemon.start()
        return daemon

    def _start_follower(self) -> None:
        self._follower = Process("follower")
        self._scheduler.spawn(
            self._follower, "main", lambda: follow(self._world.exports_path, self._world.oracle)
        )

    def _start_reader(self) -> None:
        process = self._reader = Process("reader")
        self._scheduler.spawn(process, "main", lambda: read_registered(self._world, process))

    def _ended(self, daemon: Daemon, fiber: Fiber, error: BaseException) -> None:
        """A part of a daemon has failed, which ends the daemon; raises where it had no reason to."""
        self._scheduler.say(f"ends: {type(error).__name__}: {error}")
        disk_failed = (
            self._world.disk.errors > daemon.errors_at_start or self._world.disk.fail_next is not None
        )
        expected = {
            Fenced: daemon.overlapped,
            StoreUnavailable: True,
            StoreRefused: daemon.overlapped,
            ExportError: disk_failed or daemon.overlapped,
            EpochMissing: False,
            LogError: disk_failed,
        }
        if isinstance(error, CorruptRecord):
            raise error
        reason = next((kind for kind in expected if isinstance(error, kind)), None)
        if reason is None or not expected[reason]:
            raise error
        self._kill(daemon)

    # What goes wrong

    def _count(self, fault: str) -> None:
        self.faults[fault] = self.faults.get(fault, 0) + 1
        self._scheduler.say(f"fault: {fault}")

    def _kill(self, daemon: Daemon) -> None:
        self._kill_process(daemon.process)

    def _any(self) -> Daemon | None:
        alive = self._alive()
        return self._scheduler.random.choice(alive) if alive else None

    def kill_trainer(self) -> None:
        if (daemon := self._any()) is not None:
            self._count("kill")
            self._kill(daemon)

    def stop_trainer(self) -> None:
        if (daemon := self._any()) is not None:
            self._count("stop")
            daemon.stop()

    def pause_trainer(self) -> None:
        if (daemon := self._any()) is not None:
            self._count("pause")
            self._pause(daemon.process)

    def _pause(self, process: Process) -> None:
        process.paused_until = self._scheduler.now + self._scheduler.random.random() * 3
        if self._scheduler.random.random() < 0.8:
            self._scheduler.random.choice([self.second_trainer, self.standby])()

    def second_trainer(self) -> None:
        if 0 < len(self._alive()) < 3:
            self._count("second trainer")
            self._start(alone=False)

    def standby(self) -> None:
        if 0 < len(self._alive()) < 3:
            self._count("standby")
            self._start(alone=False, standby=True)

    def power_cut(self) -> None:
        self._count("power cut")
        processes = (*(daemon.process for daemon in self._alive()), *self._world.folds, self._reader)
        for process in processes:
            if not process.dead:
                self._scheduler.kill(process)
        self._world.disk.cut_power()
        self._world.oracle.check_after_power_cut(self._world.exports_path)

    def strike(self) -> None:
        """Does something to whoever makes a call next, at that call: what chance alone seldom hits."""
        name, (kind, act) = (
            self._scheduler.random.choice(_STRUCK_CALLS),
            self._scheduler.random.choice(
                [
                    ("kill", self._kill_process),
                    ("pause", self._pause),
                    ("power cut", lambda _: self.power_cut()),
                ]
            ),
        )

        def strike(process: Process) -> None:
            self._count(f"{kind} at {name}")
            act(process)

        self._world.disk.strike = name, strike

    def _kill_process(self, process: Process) -> None:
        self._again_at = self._scheduler.now + self._scheduler.random.random() * 0.2
        self._scheduler.kill(process)

    def kill_fold(self) -> None:
        for process in self._world.folds:
            if process.fibers:
                self._count("kill fold")
                self._scheduler.kill(process)

    def disk_full(self) -> None:
        self._count("disk full")
        self._full_until = self._scheduler.now + self._scheduler.random.random()

    def disk_error(self) -> None:
        self._count("disk error")
        self._world.disk.fail_next = self._scheduler.random.choice(_EIO_CALLS)

    def kill_follower(self) -> None:
        self._count("kill follower")
        self._scheduler.kill(self._follower)

    def kill_reader(self) -> None:
        self._count("kill reader")
        self._scheduler.kill(self._reader)

    def store_flush(self) -> None:
        self._count("store flush")
        self._world.store.flush()

    def store_snapshot(self) -> None:
        self._world.store.snapshot()

    def store_restore(self) -> None:
        self._count("store restore")
        self._world.store.restore()

    def store_unavailable(self) -> None:
        self._count("store down")
        self._refusing_until = self._scheduler.now + self._scheduler.random.random() * 0.5

    def store_late(self) -> None:
        self._count("late message")
        for _ in range(self._scheduler.random.randint(1, 4)):
            self._world.store.deliver_late()
