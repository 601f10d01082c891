"""The daemon: wires the parts together, starts them in order, and stops them inside one deadline."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial

from streamtrain import plugins
from streamtrain.config import Job
from streamtrain.errors import EpochMissing, Fenced
from streamtrain.exports import ExportRunner
from streamtrain.health import Health
from streamtrain.http import serve
from streamtrain.identity import check_same_model
from streamtrain.letterbox import Letterbox, sink_of
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.lineage import losses_of
from streamtrain.log.record import EpochRecord
from streamtrain.log.recovery import restored
from streamtrain.metrics import Metrics
from streamtrain.pipeline import Feed
from streamtrain.samples.decoder import Decoder
from streamtrain.sources import Source
from streamtrain.sparse.optimizers import slots_of
from streamtrain.store.applier import StoreApplier
from streamtrain.store.opening import open_store
from streamtrain.store.prefetch import StorePrefetch
from streamtrain.store.store import Store, StoreDescription
from streamtrain.training.committer import Committer, writer_name
from streamtrain.training.guard import BadSampleGuard
from streamtrain.training.handoff import Handoff
from streamtrain.training.learner import Learner
from streamtrain.training.trainer import Trainer
from streamtrain.views import Head, Views

__all__ = ["Service"]

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class _Parts:
    """What learns, once everything is open and recovered."""

    head: Head
    feed: Feed
    views: Views
    trainer: Trainer


class _Stopped(Exception):
    """The daemon is to stop before it has recovered."""


class Service:
    """One daemon, from start to stop. Made and used on one event loop.

    Args:
      job: everything it needs to know.
      until_end: stop after what the source holds now.
      on_commit: called on the loop with each durable record.
    """

    def __init__(
        self, job: Job, *, until_end: bool = False, on_commit: Callable[[EpochRecord], None] | None = None
    ) -> None:
        self._job, self._until_end, self._on_commit = job, until_end, on_commit
        self._metrics = Metrics()
        self._health = Health()
        self._stopping = asyncio.Event()
        self._starting: asyncio.Task[_Parts] | None = None
        self._deadline: float | None = None
        self._trainer: Trainer | None = None
        self._committer: Committer | None = None

    def stop(self) -> None:
        """Finishes the step in hand, commits it and lets `run` return; gives up a start. May be called again."""
        if self._stopping.is_set():
            return
        logger.info("stopping: the step in hand is finished and committed")
        self._stopping.set()
        self._health.say("stopping")
        if self._starting is not None:
            self._starting.cancel()
        if self._trainer is not None:
            self._trainer.stop()
            self._begin_end()

    async def run(self) -> EpochRecord | None:
        """Runs until the source's end (where `until_end`), `stop`, or a fault.

        Returns:
          The newest durable record; None when it was stopped before it had recovered one.

        Raises:
          StreamtrainError: what stopped it; everything committed before is durable.
        """
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.stop)
                stack.callback(loop.remove_signal_handler, number)
            if self._job.http.enabled:
                await stack.enter_async_context(serve(self._job.http, self._metrics, self._health))
            parts = await self._start_unless_stopped(stack)
            if parts is None:
                return None
            await self._learn(parts)
            return parts.head.record

    async def _start_unless_stopped(self, stack: AsyncExitStack) -> _Parts | None:
        """Whatever a start waits for (a broker, a store, a long log), `stop` ends it: nothing was learned yet."""
        if self._stopping.is_set():
            return None
        self._starting = asyncio.create_task(self._start(stack), name="start")
        try:
            return await self._starting
        except _Stopped:
            return None
        except asyncio.CancelledError:
            if (this := asyncio.current_task()) is not None and this.cancelling():
                raise
            return None
        finally:
            self._starting = None

    async def _start(self, stack: AsyncExitStack) -> _Parts:
        job = self._job
        log = await asyncio.to_thread(EpochLog.open_or_create, job.log.path, job.name, job.describe())
        stack.enter_context(log.lock())
        check_same_model(job, log.model.job, str(job.log.path))
        store = await self._open_store(log, stack)
        applier = None if store is None else StoreApplier(log, store)
        source: Source = plugins.load("consumers", job.source.kind)(job.source, until_end=self._until_end)
        stack.push_async_callback(source.close)
        decoder = Decoder(job.sample_schema, codec=job.source.codec)
        source.use_columns(decoder.columns.arrow_schema.names)
        letterbox = await self._open_letterbox(stack)

        self._health.say("compiling")
        learner = await asyncio.to_thread(Learner.warm, job)
        await asyncio.to_thread(decoder.warm_up)
        self._health.say("recovering")
        head = Head(await self._recover(learner, log, source, applier))
        prefetch = None
        if store is not None and applier is not None and head.epoch > 0:
            rows_max = {name: table.rows_max for name, table in job.tables.items()}
            prefetch = StorePrefetch(store, applier, job.layout, rows_max, head.epoch, self._metrics)

        self._committer = Committer(log, log.digest(head.epoch), self._announcer(head), self._metrics)
        stack.push_async_callback(asyncio.to_thread, self._committer.close)
        handoff = Handoff(job.training.queue_chunks_max)
        guard = BadSampleGuard(job.training.bad_samples)
        feed = Feed(source, decoder, guard, handoff, prefetch, self._metrics, letterbox)
        self._trainer = Trainer(
            learner, handoff, self._committer, job.training, job.log.epoch_interval_s, self._metrics
        )
        self._health.watch(self._trainer.pulse)
        runners = self._export_runners(log, stack)
        views = Views(job.log, log, head, source, applier, runners, self._metrics)
        self._health.set_ready()
        logger.info("learning: epoch %d, %d samples so far", head.epoch, head.record.samples_total)
        return _Parts(head, feed, views, self._trainer)

    async def _open_store(self, log: EpochLog, stack: AsyncExitStack) -> Store | None:
        store = open_store(self._job.store)
        if store is not None:
            stack.push_async_callback(store.close)
            dims = {n: (t.dim, slots_of(t.optimizer, t.dim)) for n, t in self._job.tables.items()}
            await store.open(StoreDescription(log.model.model_id, dims, self._job.store.shards))
        return store

    async def _open_letterbox(self, stack: AsyncExitStack) -> Letterbox | None:
        """Dead letters that cannot be kept are told before anything is learned, not at the first bad record."""
        sink = sink_of(self._job)
        if sink is None:
            return None
        stack.push_async_callback(sink.close)
        await sink.open()
        return Letterbox(sink, self._metrics)

    def _export_runners(self, log: EpochLog, stack: AsyncExitStack) -> dict[str, ExportRunner]:
        runners: dict[str, ExportRunner] = {}
        for number, settings in enumerate(self._job.exports):
            exporter = plugins.load("exporters", settings.kind)(settings, log.model)
            stack.callback(exporter.close)
            name = settings.kind if settings.kind not in runners else f"{settings.kind}-{number}"
            runners[name] = ExportRunner(log, exporter)
        return runners

    async def _recover(
        self, learner: Learner, log: EpochLog, source: Source, applier: StoreApplier | None
    ) -> EpochRecord:
        """Brings the model to the log's head and the source to its positions."""
        restore = partial(learner.restore, sequential=source.sequential, rows=applier is None)
        head = log.head()
        records: list[EpochRecord] = []
        if head is None:
            # Where reading starts is durable before the first sample: "latest" means the same after a crash.
            positions = await source.start(None)
            genesis = dataclasses.replace(
                learner.genesis(positions, source.identity),
                committed_at_ms=time.time_ns() // 1_000_000,
                writer=writer_name(),
            )
            log.append(genesis)
            records = [genesis]
        if applier is not None:
            await applier.catch_up(0 if head is None else head)
            records = records or [_newest(log, head or 0)]
        if records:
            last = await asyncio.to_thread(restore, records)
        else:
            last = await asyncio.to_thread(restored, log, lambda found: restore(self._unless_stopped(found)))
        if head is not None:
            # A base has no notes: the identity of the source and what it lost stand in the epoch's own record.
            notes = log.describe(last.epoch).notes
            await source.start(last.positions, notes.get("source", ""))
            learner.source, learner.lost = source.identity, losses_of(notes)
            logger.info("recovered epoch %d: %d samples", last.epoch, last.samples_total)
        return last

    def _unless_stopped(self, records: Iterable[EpochRecord]) -> Iterator[EpochRecord]:
        """The records. When the daemon is stopped meanwhile it raises, so that the thread that reads them ends."""
        for record in records:
            if self._stopping.is_set():
                raise _Stopped
            yield record

    def _announcer(self, head: Head) -> Callable[[EpochRecord, str], None]:
        """What the writer thread calls when a record is durable: it moves the head, on the loop."""
        loop = asyncio.get_running_loop()

        def move(record: EpochRecord) -> None:
            # Rows are read from the log by whoever wants them: the head keeps none of them in memory.
            head.move(dataclasses.replace(record, tables={}, dense={}, metrics={}))
            if self._on_commit is not None:
                self._on_commit(record)

        def announce(record: EpochRecord, _: str) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(move, record)

        return announce

    async def _learn(self, parts: _Parts) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                feeding = group.create_task(parts.feed.run(), name="feed")
                viewing = parts.views.start(group)
                await self._train(parts.trainer)
                feeding.cancel()
                await parts.views.finish(self._begin_end())
                for task in viewing:
                    task.cancel()
        except BaseExceptionGroup as faults:
            raise _gravest(faults.exceptions) from None

    async def _train(self, trainer: Trainer) -> None:
        """Runs the trainer in a thread of its own. When cancelled, it lets the step in hand be committed first."""
        with ThreadPoolExecutor(1, "trainer") as executor:
            running = asyncio.get_running_loop().run_in_executor(executor, trainer.run)
            try:
                await asyncio.shield(running)
            except asyncio.CancelledError:
                trainer.stop()
                # Something has failed: a log that has no room must not keep that from being told.
                self._begin_end()
                await running
                raise

    def _begin_end(self) -> float:
        """From its first call on, everything that is left to do shares one deadline; returns the seconds up to it."""
        loop = asyncio.get_running_loop()
        if self._deadline is None:
            self._deadline = loop.time() + self._job.training.stop_timeout_s
            assert self._committer is not None
            loop.call_at(self._deadline, self._committer.abandon)
        return max(0.0, self._deadline - loop.time())


def _newest(log: EpochLog, epoch: int) -> EpochRecord:
    """The record of the head, or the base that stands for it."""
    try:
        return log.read(epoch)
    except EpochMissing:
        return log.read_base(epoch)


def _gravest(faults: Sequence[BaseException]) -> BaseException:
    """The fault to raise: being fenced, whatever was noticed first, else the first one. The others are its echo."""
    gravest = next((fault for fault in faults if isinstance(fault, Fenced)), faults[0])
    for other in faults:
        if other is not gravest:
            logger.warning("also failed: %s: %s", type(other).__name__, other)
    return gravest
