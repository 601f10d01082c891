"""The daemon: wires the parts together, starts them in order, and stops them inside one deadline."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from streamtrain import plugins
from streamtrain.config import Job
from streamtrain.dictionary.recorder import ValueRecorder
from streamtrain.errors import ConfigError, Fenced
from streamtrain.exports import ExportRunner
from streamtrain.fetching import make_prefetch, make_sweeps, swept
from streamtrain.health import Health
from streamtrain.http import serve
from streamtrain.identity import check_same_model
from streamtrain.letterbox import Letterbox, sink_of
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.headstart import Headstart
from streamtrain.log.model import ModelDescription
from streamtrain.log.record import EpochRecord
from streamtrain.log.shared import SharedReads
from streamtrain.logs import configure_logging, correlate
from streamtrain.metrics import Metrics
from streamtrain.outages import outlasted
from streamtrain.ownership import Candidate, Ownership, TellsOwnership
from streamtrain.pipeline import Feed
from streamtrain.recovering import Recovering
from streamtrain.reloading import reload_of
from streamtrain.restorer import Restorer, Stopped
from streamtrain.samples.decoder import Decoder
from streamtrain.samples.positions import LeavesLearned
from streamtrain.sources import Source
from streamtrain.sparse.optimizers import slots_of
from streamtrain.stages import report
from streamtrain.standby import Standby, claim
from streamtrain.status import StatusBoard
from streamtrain.store.applier import StoreApplier
from streamtrain.store.opening import open_store
from streamtrain.store.progress import Progress
from streamtrain.store.store import Store, StoreDescription
from streamtrain.store.sweeps import Sweeps
from streamtrain.supervisor import Supervisor
from streamtrain.trace import Trace
from streamtrain.training.committer import Committer, writer_name
from streamtrain.training.guard import BadSampleGuard
from streamtrain.training.handoff import Handoff
from streamtrain.training.learner import Learner
from streamtrain.training.trainer import Trainer
from streamtrain.views import Head, Views

__all__ = ["Service"]

logger = logging.getLogger(__name__)

_TELL_S = 0.25


@dataclasses.dataclass(frozen=True, slots=True)
class _Parts:
    """What learns, once everything is open and recovered."""

    head: Head
    feed: Feed
    sweeps: Sweeps | None
    views: Views
    trainer: Trainer


class Service:
    """One daemon, from start to stop. Made and used on one event loop.

    Args:
      job: everything it needs to know.
      until_end: stop after what the source holds now.
      on_commit: called on the loop with each durable record.
      headstart: has begun to read the newest base of the job's log.
      profile: a file that is written for Perfetto: see `Trace`.
      supervisor: is told how the daemon stands. Default: nobody is.
      read_again: reads the job anew when SIGHUP comes. Default: the signal does what it did.

    Attributes:
      report: after `run`, what share of the time each stage was at what, in lines for people.
    """

    def __init__(
        self,
        job: Job,
        *,
        until_end: bool = False,
        on_commit: Callable[[EpochRecord], None] | None = None,
        headstart: Headstart | None = None,
        profile: Path | None = None,
        supervisor: Supervisor | None = None,
        read_again: Callable[[], Job] | None = None,
    ) -> None:
        self._job, self._until_end, self._on_commit, self._headstart = job, until_end, on_commit, headstart
        self._metrics, self._profile = Metrics(), profile
        self._supervisor = supervisor or Supervisor("")
        # Behind the phase, what a person asks next: epoch and lag.
        self._figures: Callable[[], str] = lambda: ""
        self.report: Sequence[str] = ()
        self._health = Health()
        self._stopping = asyncio.Event()
        self._starting: asyncio.Task[_Parts] | None = None
        self._deadline: float | None = None
        self._trainer: Trainer | None = None
        self._committer: Committer | None = None
        self._ownership: Ownership | None = None
        self._epoch = -1
        self._read_again = read_again
        self._board: StatusBoard | None = None
        self._guard: BadSampleGuard | None = None
        self._views: Views | None = None

    def stop(self) -> None:
        """Finishes the step in hand, commits it and lets `run` return; gives up a start. May be called again."""
        if self._stopping.is_set():
            return
        logger.info("stopping: the step in hand is finished and committed")
        self._stopping.set()
        self._health.say("stopping")
        self._supervisor.stopping("stopping: the last epoch is committed, and its views follow")
        if self._starting is not None:
            self._starting.cancel()
        if self._trainer is not None:
            self._trainer.stop()
            self._begin_end()

    def reload(self) -> None:
        """Reads the settings again and takes over what a running daemon can; says what waits for a restart.

        Settings that are wrong change nothing. Nothing waits meanwhile: files of settings are small.
        """
        assert self._read_again is not None
        with self._supervisor.reloading("reading the settings again"):
            try:
                reload = reload_of(self._job, self._read_again())
            except ConfigError as error:
                logger.error("the settings are not reloaded, those from before hold: %s", error)
                return
            self._job = reload.job
            configure_logging(self._job.logging, self._job.name)
            self._hand_on()
        logger.info("settings reloaded: %s", ", ".join(reload.taken) or "nothing that can be is different")
        if reload.restart:
            logger.warning("changed, and wait for the next start: %s", ", ".join(reload.restart))
        if reload.refused:
            logger.error(
                "changed, and the next start will refuse them, because they make another model of it: %s; set them back, or "
                "see `streamtrain migrate`",
                ", ".join(reload.refused),
            )

    def _hand_on(self) -> None:
        """Gives the settings that hold now to those that ask for them each time."""
        if self._board is not None:
            self._board.configuration = self._job.describe_redacted()
        if self._guard is not None:
            self._guard.settings = self._job.training.bad_samples
        if self._views is not None:
            self._views.settings = self._job.log

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
            if self._read_again is not None:
                loop.add_signal_handler(signal.SIGHUP, self.reload)
                stack.callback(loop.remove_signal_handler, signal.SIGHUP)
            stack.callback(correlate, None)
            if self._supervisor.listens:
                await stack.enter_async_context(self._telling())
            if self._profile is not None:
                self._metrics.stages.trace = stack.enter_context(Trace(self._profile))
            if self._job.http.enabled:
                await self._serve(stack)
            parts = await self._start_unless_stopped(stack)
            if parts is None:
                return None
            begin = time.perf_counter()
            try:
                await self._learn(parts)
            finally:
                self.report = tuple(report(self._metrics.stages.times, time.perf_counter() - begin))
            return parts.head.record

    async def _serve(self, stack: AsyncExitStack) -> None:
        """Metrics, probes and the status page, until `stack` is closed."""
        job = self._job
        silent_max_s = job.http.trainer_silent_max_s
        board = StatusBoard(job.name, job.describe_redacted(), self._metrics, self._health, silent_max_s)
        self._board = board
        await stack.enter_async_context(board.watching())
        await stack.enter_async_context(serve(job.http, self._metrics, self._health, board))

    @asynccontextmanager
    async def _telling(self) -> AsyncIterator[None]:
        """Tells the supervisor how things stand, while the context is open. That it does proves that the loop runs."""

        async def tell() -> None:
            silent_max_s = self._job.http.trainer_silent_max_s
            while True:
                if not self._stopping.is_set():
                    status = f"{self._health.phase}{self._figures()}"
                    live = self._health.silent_s <= silent_max_s
                    self._supervisor.tell(status, ready=self._health.ready, live=live)
                await asyncio.sleep(_TELL_S)

        telling = asyncio.create_task(tell(), name="supervisor")
        try:
            yield
        except BaseException as fault:
            self._supervisor.stopping(f"{type(fault).__name__}: {fault}")
            raise
        finally:
            telling.cancel()

    async def _start_unless_stopped(self, stack: AsyncExitStack) -> _Parts | None:
        """Whatever a start waits for (a broker, a store, a long log), `stop` ends it: nothing was learned yet."""
        if self._stopping.is_set():
            return None
        self._starting = asyncio.create_task(self._start(stack), name="start")
        try:
            return await self._starting
        except Stopped:
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
        if job.failover is None:
            stack.enter_context(log.lock())
        check_same_model(job, log.model.job, str(job.log.path))
        store = await self._open_store(log, stack)
        epochs = SharedReads(log)
        applier = None if store is None else StoreApplier(epochs, store)
        source = self._make_source(stack)
        decoder = Decoder(job.sample_schema, job.source.codec, leaves_max=job.source.leaves_max)
        source.use_columns(decoder.columns.arrow_schema.names)

        self._health.say("recovering")
        learner = await asyncio.to_thread(Learner, job)
        stopped = self._stopping.is_set
        rows = store is None
        restorer = Restorer(
            learner,
            log,
            sequential=source.sequential,
            rows=rows,
            stopped=stopped,
            headstart=self._headstart,
        )
        recovering = Recovering(log, learner, restorer, source, job.source.kind, applier)
        # Compiling touches no state of the model, so it has the one core while rows are loaded on the other.
        warming = asyncio.gather(asyncio.to_thread(learner.warm_up), asyncio.to_thread(decoder.warm_up))
        if job.failover is None:
            record, _ = await asyncio.gather(recovering.finish(self._health, self._metrics), warming)
        else:
            record = await self._take_over(recovering, warming, stack)
        letterbox = await self._open_letterbox(stack)
        head = Head(record)
        progress, prefetch, sweeps = Progress(head.epoch, record.step_next), None, None
        if store is not None and applier is not None:
            resident = learner.sparse.resident
            prefetch = make_prefetch(job, log, store, applier, progress, resident, self._metrics)
            sweeps = make_sweeps(job, store, applier, progress, self._metrics)

        self._committer = Committer(log, log.continue_from(head.epoch), self._announcer(head), self._metrics)
        stack.push_async_callback(asyncio.to_thread, self._committer.close)
        handoff = Handoff(job.training.queue_chunks_max)
        guard = self._guard = BadSampleGuard(job.training.bad_samples)
        await self._open_dictionary(log, decoder, stack)
        depth = job.training.queue_chunks_max
        learned = LeavesLearned(record.leaves)
        feed = Feed(source, decoder, guard, handoff, prefetch, self._metrics, letterbox, depth, learned)
        interval_s = job.log.epoch_interval_s
        self._trainer = Trainer(
            learner, handoff, self._committer, job.training, interval_s, self._metrics, progress, sweeps
        )
        self._health.watch(self._trainer.pulse)
        runners = self._export_runners(log.model, epochs, stack)
        views = self._views = Views(job.log, log, head, source, applier, runners, self._metrics)
        # The settings may have been read again since this began.
        self._hand_on()
        self._figures = partial(_figures, head, source)
        correlate(lambda: {"epoch": head.epoch, "step": learner.epochs.step})
        self._health.set_ready()
        self._metrics.owner.set(1)
        if (trace := self._metrics.stages.trace) is not None:
            learner.spans = trace
        logger.info("learning: epoch %d, %d samples so far", head.epoch, head.record.samples_total)
        return _Parts(head, feed, sweeps, views, self._trainer)

    async def _take_over(
        self, recovering: Recovering, warming: Awaitable[object], stack: AsyncExitStack
    ) -> EpochRecord:
        """Follows the log until this daemon owns the model, then makes the log its own."""
        log, restorer = recovering.log, recovering.restorer
        assert self._job.failover is not None and isinstance(recovering.source, TellsOwnership), (
            "the job was checked"
        )
        # The epoch that this daemon has, whether it follows or learns.
        candidate = Candidate(log.model.model_id, writer_name(), lambda: max(restorer.epoch, self._epoch))
        self._ownership = recovering.source.ownership(self._job.failover, candidate)
        self._figures = lambda: f": epoch {restorer.epoch}"
        stack.push_async_callback(self._ownership.close)
        async with Standby(log, restorer, self._ownership, self._health, self._metrics) as standby:
            await asyncio.gather(standby.follow(), warming)
            await standby.until_owner()
        begin = time.monotonic()
        self._health.say("taking over")
        stack.enter_context(log.lock(takeover=True))
        await claim(log, recovering.learner, restorer)
        record = await recovering.finish(self._health, self._metrics)
        self._metrics.takeover_seconds.set(taken_s := time.monotonic() - begin)
        logger.info("took over at epoch %d in %.2f s", record.epoch, taken_s)
        return record

    async def _open_store(self, log: EpochLog, stack: AsyncExitStack) -> Store | None:
        store = open_store(self._job.store)
        if store is not None:
            stack.push_async_callback(store.close)
            dims = {n: (t.row_dim, slots_of(t.optimizer, t.row_dim)) for n, t in self._job.tables.items()}
            scanned = frozenset(swept(self._job.tables))
            description = StoreDescription(log.model.model_id, dims, self._job.store.shards, scanned)
            if await asyncio.to_thread(log.head) is None:
                # A model that has learned nothing has nothing to save by waiting: a wrong store.url is told at once.
                await store.open(description)
            else:
                await outlasted(partial(store.open, description), self._health, self._metrics)
        return store

    def _make_source(self, stack: AsyncExitStack) -> Source:
        kind = self._job.source.kind
        with plugins.blamed(ConfigError, f"source {kind!r}: making it"):
            source: Source = plugins.load("consumers", kind)(self._job.source, until_end=self._until_end)
        stack.push_async_callback(source.close)
        return source

    async def _open_letterbox(self, stack: AsyncExitStack) -> Letterbox | None:
        """Dead letters that cannot be kept are told before anything is learned, not at the first bad record."""
        sink = sink_of(self._job)
        if sink is None:
            return None
        stack.push_async_callback(sink.close)
        await sink.open()
        return Letterbox(sink, self._metrics)

    async def _open_dictionary(self, log: EpochLog, decoder: Decoder, stack: AsyncExitStack) -> None:
        """From here on values are recorded: after the warm-up, whose samples are made up, and only by who learns."""
        if self._job.reverse_dictionary:
            recorder = await asyncio.to_thread(ValueRecorder, log.path, self._job.reverse_dictionary)
            stack.push_async_callback(asyncio.to_thread, recorder.close)
            decoder.columns.observer = recorder.see

    def _export_runners(
        self, model: ModelDescription, epochs: SharedReads, stack: AsyncExitStack
    ) -> dict[str, ExportRunner]:
        runners: dict[str, ExportRunner] = {}
        for number, settings in enumerate(self._job.exports):
            made = plugins.load("exporters", settings.kind)
            with plugins.blamed(ConfigError, f"exporter {settings.kind!r}: making it"):
                exporter = made(settings, model, takeover=self._job.failover is not None)
            stack.callback(exporter.close)
            name = settings.kind if settings.kind not in runners else f"{settings.kind}-{number}"
            runners[name] = ExportRunner(epochs, exporter)
        return runners

    def _announcer(self, head: Head) -> Callable[[EpochRecord, str], None]:
        """What the writer thread calls when a record is durable: it moves the head, on the loop."""
        loop = asyncio.get_running_loop()

        def move(record: EpochRecord) -> None:
            # Rows are read from the log by whoever wants them: the head keeps none of them in memory.
            head.move(record.without_arrays())
            self._epoch = record.epoch
            if self._on_commit is not None:
                self._on_commit(record)

        def announce(record: EpochRecord, _: str) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(move, record)

        return announce

    async def _learn(self, parts: _Parts) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                feeding = [group.create_task(parts.feed.run(), name="feed")]
                if parts.sweeps is not None:
                    feeding.append(group.create_task(parts.sweeps.run(), name="sweeps"))
                viewing = parts.views.start(group)
                if self._ownership is not None:
                    viewing.append(group.create_task(_fence(self._ownership), name="ownership"))
                await self._train(parts.trainer)
                for task in feeding:
                    task.cancel()
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


def _figures(head: Head, source: Source) -> str:
    figures = f": epoch {head.epoch}, {head.record.samples_total} samples in all"
    lags = source.lag_records()
    return f"{figures}, {sum(lags.values())} records behind" if lags else figures


async def _fence(ownership: Ownership) -> None:
    """Ends the daemon when another owns. It does not become a standby in place: a start from nothing is the one way in."""
    successor = await ownership.lost()
    raise Fenced(
        f"{successor} owns the model now: this daemon was silent for longer than failover.session_timeout_s (paused, or cut "
        "off from Kafka). Start it again, and it stands by"
    )


def _gravest(faults: Sequence[BaseException]) -> BaseException:
    """The fault to raise: being fenced, whatever was noticed first, else the first one. The others are its echo."""
    gravest = next((fault for fault in faults if isinstance(fault, Fenced)), faults[0])
    for other in faults:
        if other is not gravest:
            logger.warning("also failed: %s: %s", type(other).__name__, other)
    return gravest
