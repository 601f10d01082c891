"""The daemon's order of start and stop, as `streamtrain.service` has it, over the product's own parts."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from exporters.deltas import DeltaExporter, DeltaSettings
from streamtrain.errors import CorruptRecord, EpochMissing, ExportError, Fenced, LogError, StoreUnavailable
from streamtrain.exports import ExportRunner
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.files import Files, clean_asides, typed_errors
from streamtrain.log.fold import fold
from streamtrain.log.reader import LogReader
from streamtrain.log.readers import Readers
from streamtrain.log.record import EpochRecord
from streamtrain.restorer import Restorer
from streamtrain.samples.batch import SampleBatch
from streamtrain.samples.positions import LeavesLearned
from streamtrain.sparse.wanted import DynamicRows
from streamtrain.standby import claim
from streamtrain.store.applier import StoreApplier
from streamtrain.store.prefetch import StorePrefetch
from streamtrain.store.progress import Progress
from streamtrain.training.committer import Committer
from streamtrain.training.handoff import End, Item
from streamtrain.training.trainer import Trainer
from tests.simulation.disk import Disk, SimulatedFiles
from tests.simulation.ledger import LAYOUT, NOTHING, TABLES, LedgerLearner
from tests.simulation.loom import EPOCH_S, drive
from tests.simulation.oracle import Oracle
from tests.simulation.scheduler import Process, Scheduler
from tests.simulation.settings import Settings
from tests.simulation.store import Shards, SimulatedStore
from tests.simulation.stream import SimulatedSource, Stream

__all__ = ["Daemon", "World", "opened_log"]

_ROWS_MAX = 4096
_POLL_S, _SESSION_S = 0.1, 0.3
# How often a poll of the group goes unanswered although the owner lives: it is taken for dead by mistake.
_DEAF_SHARE = 0.1


@dataclasses.dataclass
class World:
    """What outlives a daemon."""

    scheduler: Scheduler
    settings: Settings
    stream: Stream
    disk: Disk
    store: Shards
    oracle: Oracle
    log_path: Path
    exports_path: Path
    folds: list[Process] = dataclasses.field(default_factory=list)
    owner: Daemon | None = None
    takeovers: int = 0


Log = TypeVar("Log", bound=LogReader)


def opened_log(kind: type[Log], world: World, files: Files) -> Log:
    """The world's log, whose readers' leases run by the world's clock."""
    log = kind.open(world.log_path, files)
    log.readers = Readers(world.log_path, files, lambda: EPOCH_S + world.scheduler.now)
    return log


class _Handoff:
    """Bounded, from the feed to the trainer."""

    def __init__(self, scheduler: Scheduler, items_max: int) -> None:
        self._scheduler, self._items_max = scheduler, items_max
        self._items: deque[Item | End] = deque()

    def put(self, item: Item | End) -> None:
        self._scheduler.wait(lambda: len(self._items) < self._items_max)
        self._items.append(item)

    def get(self, timeout_s: float) -> Item | End | None:
        there = self._scheduler.wait(lambda: bool(self._items), timeout_s)
        return self._items.popleft() if there else None


class Daemon:
    """One process that trains.

    Args:
      world: where it lives.
      number: tells it from others.
      alone: takes the log's lock and exports; False: a second writer, whom no lock stops.
      standby: follows the log until the owner is silent, then takes the log from it, awake or not.

    Attributes:
      finished: it has learned everything and every view of it has it.
      head: the newest epoch that it knows to be durable.
    """

    def __init__(self, world: World, number: int, *, alone: bool, standby: bool = False) -> None:
        self._world, self._alone, self._standby = world, alone, standby
        self.process = Process(f"trainer {number}")
        self.finished = self.overlapped = False
        self.errors_at_start = world.disk.errors
        self.head = -1
        self._trainer: Trainer | None = None
        self._done: dict[str, int] = {}
        self._files = SimulatedFiles(world.disk, self.process)

    def start(self) -> None:
        self._world.scheduler.spawn(self.process, "main", self._main)

    def stop(self) -> None:
        """SIGTERM."""
        if self._trainer is not None:
            self._trainer.stop()

    def _spawn(self, name: str, body: Callable[[], object]) -> None:
        self._world.scheduler.spawn(self.process, name, body)

    def _main(self) -> None:
        world, scheduler = self._world, self._world.scheduler
        log = opened_log(EpochLog, world, self._files)
        stack = ExitStack()
        self.process.cleanups.append(stack.close)
        learner, source = LedgerLearner(), SimulatedSource(world.stream, scheduler)
        store = SimulatedStore(world.store) if world.settings.store else None
        applier = None if store is None else StoreApplier(log, store, lambda: scheduler.now)
        any_learner: Any = learner
        restorer = Restorer(any_learner, log, sequential=source.sequential, rows=store is None)
        if self._standby:
            self._stand_by(restorer, learner, rows=store is None)
            stack.enter_context(log.lock(takeover=True))
            drive(claim(log, any_learner, restorer))
        elif self._alone:
            stack.enter_context(log.lock())
            world.owner = self
        else:
            with typed_errors("clean", world.log_path):
                clean_asides(self._files, world.log_path / "tmp")
        learned = self._recover(log, learner, source, applier, restorer)
        prefetch = None
        if store is not None and applier is not None and self.head > 0:
            prefetch = StorePrefetch(
                store,
                applier,
                LAYOUT,
                {name: DynamicRows(name, _ROWS_MAX) for name in TABLES},
                Progress(self.head),
                NOTHING,  # type: ignore[arg-type]
            )
        committer = Committer(log, log.continue_from(self.head), self._announce, NOTHING)
        handoff = _Handoff(scheduler, world.settings.queue_chunks_max)
        any_handoff: Any = handoff
        trainer = Trainer(
            any_learner,
            any_handoff,
            committer,
            world.settings.training,
            world.settings.epoch_interval_s,
            NOTHING,
        )
        self._trainer = trainer
        runner = self._open_export(log)
        if world.owner is self:
            self._spawn("ownership", self._fence)
        self._spawn("feed", lambda: self._feed(source, prefetch, handoff, learned))
        if applier is not None:
            self._view("store", lambda: drive(applier.catch_up(self.head)))
        if runner is not None:
            self._view("export", runner.catch_up)
        self._spawn("fold", lambda: self._fold(log))
        trainer.run()
        committer.close()
        scheduler.wait(lambda: all(done >= self.head for done in self._done.values()))
        self.finished = True
        scheduler.say("has learned everything there is, or was told to stop")
        scheduler.kill(self.process)

    def _recover(
        self,
        log: EpochLog,
        learner: LedgerLearner,
        source: SimulatedSource,
        applier: StoreApplier | None,
        restorer: Restorer,
    ) -> LeavesLearned:
        last = restorer.catch_up()
        if last is None:
            log.append(learner.genesis(source.start(None)))
            last = restorer.catch_up()
            assert last is not None, "it was just appended"
            if last.epoch:
                raise Fenced("another has gone on while this one, which began the log, was paused")
        else:
            source.start(last.positions)
        if applier is not None:
            drive(applier.catch_up(last.epoch))
        self.head = last.epoch
        self._world.oracle.restored(last.epoch, learner.model, rows=applier is None)
        self._world.scheduler.say(
            f"recovered epoch {last.epoch}, positions {last.positions}, leaves {last.leaves}"
        )
        return LeavesLearned(last.leaves)

    def _stand_by(self, restorer: Restorer, learner: LedgerLearner, *, rows: bool) -> None:
        """Follows the log, warm, until the owner is silent for as long as a session lasts, or is taken for it."""
        world, scheduler = self._world, self._world.scheduler
        silent_s = 0.0
        while silent_s < _SESSION_S:
            # As `Standby.follow`: what cannot be read is the owner's to be stopped by.
            durable = world.oracle.head
            try:
                restorer.catch_up()
                assert restorer.epoch >= durable, (
                    f"a standby looks at the log and has epoch {restorer.epoch}, where {durable} was durable before"
                )
            except LogError as error:
                if not world.disk.errors and not isinstance(error, EpochMissing):
                    raise
            if (epoch := restorer.epoch) >= 0:
                world.oracle.restored(epoch, learner.model, rows=rows)
            scheduler.sleep(_POLL_S)
            silent = world.owner is None or world.owner.silent or scheduler.random.random() < _DEAF_SHARE
            silent_s = silent_s + _POLL_S if silent else 0.0
        former, world.owner = world.owner, self
        # What an exporter publishes that wakes between its check and its rename is promised to nobody.
        self._alone = former is None or former.process.dead
        self.overlapped = self.overlapped or not self._alone
        world.takeovers += 1
        scheduler.say(f"takes over with epoch {restorer.epoch}")

    def _fence(self) -> None:
        """Ends this daemon when it hears that another owns, which may be long after the log has told it."""
        scheduler = self._world.scheduler
        scheduler.wait(lambda: self._world.owner is not self)
        scheduler.sleep(scheduler.random.random() * 2)
        raise Fenced("another daemon owns the model now")

    @property
    def silent(self) -> bool:
        """Whether it is dead or paused: it says nothing to Kafka's group."""
        return self.process.dead or self.process.paused_until > self._world.scheduler.now

    def _announce(self, record: EpochRecord, digest: str) -> None:
        self._world.oracle.announced(record.epoch, digest)
        self.head = record.epoch

    def _open_export(self, log: EpochLog) -> ExportRunner | None:
        settings, scheduler = self._world.settings, self._world.scheduler
        if not (self._alone and settings.exports):
            return None
        exports = DeltaSettings(
            path=str(self._world.exports_path),
            base_every_epochs=settings.export_base_every_epochs,
            keep_bases=settings.export_keep_bases,
        )
        exporter = DeltaExporter(
            exports, log.model, self._files, lambda: scheduler.now, takeover=self._standby
        )
        return ExportRunner(log, exporter)

    def _feed(
        self,
        source: SimulatedSource,
        prefetch: StorePrefetch | None,
        handoff: _Handoff,
        learned: LeavesLearned,
    ) -> None:
        while (chunk := source.read()) is not None:
            decoded = learned.leave_out(chunk)
            batch: SampleBatch = decoded.batch
            pulled = {} if prefetch is None else drive(prefetch.rows_for(batch)).rows
            handoff.put(Item(decoded, pulled))
        handoff.put(End())

    def _view(self, name: str, work: Callable[[], int]) -> None:
        """Follows the log's head, as `streamtrain.views` does."""
        scheduler = self._world.scheduler
        self._done[name] = -1

        def run() -> None:
            while True:
                scheduler.wait(lambda: self.head > self._done[name])
                try:
                    self._done[name] = work()
                except (StoreUnavailable, ExportError, OSError) as error:
                    scheduler.say(f"falls behind: {error}")
                    scheduler.sleep(0.1)

        self._spawn(name, run)

    def _fold(self, log: EpochLog) -> None:
        """Starts a process that folds whenever enough epochs have gathered, and waits for its end."""
        world, settings = self._world, self._world.settings
        while True:
            newest = max(log.bases(), default=0)
            world.scheduler.wait(lambda newest=newest: self.head >= newest + settings.base_every_epochs)
            process = Process(f"fold {len(world.folds)}")
            process.on_error = lambda _, error, process=process: _fold_ended(world, process, error)
            world.folds.append(process)
            fiber = world.scheduler.spawn(
                process, "main", lambda process=process: _fold_and_collect(world, process)
            )
            world.scheduler.wait(lambda fiber=fiber: fiber.done)
            world.scheduler.sleep(0.05)


def _fold_and_collect(world: World, process: Process) -> None:
    """What `python -m streamtrain.log.fold DIR --keep N` does."""
    files = SimulatedFiles(world.disk, process)
    base = fold(world.log_path, files=files)
    world.scheduler.say(f"folded base {base}")
    removed = opened_log(EpochLog, world, files).collect(world.settings.keep_epochs)
    world.scheduler.say(f"collected {removed} files")


def _fold_ended(world: World, process: Process, error: BaseException) -> None:
    """A fold may fail with the disk, or where another one collects what it reads; it is tried again."""
    world.scheduler.say(f"fold fails: {type(error).__name__}: {error}")
    beside = any(other is not process and other.fibers for other in world.folds)
    disk_failed = isinstance(error, LogError) and not isinstance(error, CorruptRecord) and world.disk.errors
    if not disk_failed and not (isinstance(error, EpochMissing) and beside):
        raise error
