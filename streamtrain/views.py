"""What follows the log: the store, the exporters, the source's mirror of positions, and the folding of bases.

Each view reads committed records from the log at its own pace. None is on the path of a step, and a view that
fails is tried again with growing pauses: the log waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from streamtrain.behind import Behind
from streamtrain.errors import (
    CorruptRecord,
    EpochMissing,
    ExportError,
    LogError,
    SourceError,
    StoreUnavailable,
)
from streamtrain.exports import ExportRunner
from streamtrain.holds import Holds
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.record import EpochRecord
from streamtrain.log.settings import LogSettings
from streamtrain.metrics import Metrics
from streamtrain.plugins import blamed
from streamtrain.sources import Source
from streamtrain.store.applier import StoreApplier

__all__ = ["Head", "Views", "fold_is_due"]

logger = logging.getLogger(__name__)

_PAUSE_FIRST_S, _PAUSE_MAX_S = 0.1, 5.0
_FOLD_PAUSE_FIRST_S, _FOLD_PAUSE_MAX_S = 5.0, 300.0
_WATCH_S = 1.0
_SHOW_READERS_EVERY = 10  # watches
# Below this, reading epochs again costs a restart nothing worth a base.
_FOLD_BYTES_MIN = 256 << 20
# Folding shares the machine with training and gives way to it.
_FOLD_NICENESS = 10


def fold_is_due(settings: LogSettings, base_bytes: int, epochs: int, epochs_bytes: int) -> bool:
    """Whether a base should be folded, where so many epochs of so many bytes follow one of `base_bytes`."""
    share = max(_FOLD_BYTES_MIN, settings.base_share * base_bytes)
    return epochs >= settings.base_every_epochs or epochs_bytes > share


class Head:
    """The newest durable epoch and where the source stands in it. Belongs to the loop."""

    def __init__(self, record: EpochRecord) -> None:
        self.record = record
        self._moved = asyncio.Event()

    @property
    def epoch(self) -> int:
        return self.record.epoch

    def move(self, record: EpochRecord) -> None:
        """A newer record is durable."""
        self.record = record
        self._moved.set()
        self._moved = asyncio.Event()

    async def beyond(self, epoch: int) -> None:
        """Waits until the head is newer than `epoch`."""
        while self.epoch <= epoch:
            await self._moved.wait()


@dataclass(slots=True)
class _View:
    """One follower of the log: what it does, and how far it is."""

    name: str
    work: Callable[[], Awaitable[int]]
    done: int = -1
    failing: bool = False
    behind: Behind = field(default_factory=Behind)


class Views:
    """All followers of one log.

    Args:
      settings: the log's.
      log: read from.
      head: moved by the committer.
      source: told of durable positions.
      applier: keeps the store up to date; None where there is no store.
      runners: by exporter kind, what keeps it up to date.
      metrics: counts.
    """

    def __init__(
        self,
        settings: LogSettings,
        log: EpochLog,
        head: Head,
        source: Source,
        applier: StoreApplier | None,
        runners: dict[str, ExportRunner],
        metrics: Metrics,
    ) -> None:
        self.settings, self._log, self._head, self._source = settings, log, head, source
        self._applier, self._runners, self._metrics = applier, runners, metrics
        self._progress = asyncio.Condition()
        self._views = [_View("source", self._mirror), *(_View(n, self._exporting(n)) for n in runners)]
        if applier is not None:
            self._views.append(_View("store", self._apply))
        self._holds = Holds(log.readers, dict(self._standing()), settings.reader_lease_s, metrics)
        self._fold_warnings: set[str] = set()
        self._record_time_ms: int | None = None

    def _standing(self) -> Iterator[tuple[str, Callable[[], int | None]]]:
        """By the name under which it is registered in the log: where a view stands, by its own durable state."""
        for name, runner in self._runners.items():
            yield f"exporter {name}", lambda runner=runner: _epoch_of(runner)  # type: ignore[misc]
        if (applier := self._applier) is not None:
            yield "store", lambda: applier.status.applied_epoch

    def start(self, group: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        """Starts every view in `group`. They run until cancelled."""
        tasks = [group.create_task(self._follow(view), name=f"view {view.name}") for view in self._views]
        return [
            *tasks,
            group.create_task(self._fold_forever(), name="fold"),
            group.create_task(self._watch(), name="watch"),
            group.create_task(self._hold_forever(), name="hold"),
        ]

    async def finish(self, timeout_s: float) -> None:
        """Waits until every view has what the head has; after `timeout_s` the next start goes on from there."""
        try:
            async with asyncio.timeout(timeout_s), self._progress:
                await self._progress.wait_for(lambda: not self._behind())
        except TimeoutError:
            names = " and ".join(self._behind())
            logger.warning("stopping with %s behind the log; the next start catches up", names)

    def _behind(self) -> list[str]:
        return [view.name for view in self._views if view.done < self._head.epoch]

    async def _follow(self, view: _View) -> None:
        pause_s = _PAUSE_FIRST_S
        while True:
            await self._head.beyond(view.done)
            try:
                with self._metrics.stages.busy(f"view {view.name}"):
                    view.done = await view.work()
            except (CorruptRecord, EpochMissing):
                # The log itself is damaged: what would be learned now could not be recovered either.
                raise
            except (StoreUnavailable, ExportError, SourceError, LogError, OSError) as error:
                if not view.failing:
                    logger.warning("%s falls behind the log, training goes on: %s", view.name, error)
                view.failing = True
                self._count_failure(view.name)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _PAUSE_MAX_S)
            else:
                if view.failing:
                    logger.warning("%s has caught up with epoch %d", view.name, view.done)
                view.failing, pause_s = False, _PAUSE_FIRST_S
                async with self._progress:
                    self._progress.notify_all()

    def _count_failure(self, name: str) -> None:
        if name in self._runners:
            self._metrics.export_errors.labels(name).inc()
        elif name == "store":
            self._metrics.store_errors.inc()

    async def _mirror(self) -> int:
        record = self._head.record
        # Best effort, whatever a source makes of it: nothing reads the mirror back.
        with blamed(SourceError, f"source {type(self._source).__name__!r}: committed"):
            await self._source.committed(record.positions)
        return record.epoch

    async def _apply(self) -> int:
        assert self._applier is not None
        epoch = await self._applier.catch_up(self._head.epoch)
        self._metrics.store_epoch.set(epoch)
        return epoch

    def _exporting(self, name: str) -> Callable[[], Awaitable[int]]:
        async def export() -> int:
            runner = self._runners[name]
            stop, written = threading.Event(), runner.status.bytes_total
            try:
                await asyncio.to_thread(runner.catch_up, stop.is_set)
            finally:
                # A thread cannot be cancelled: it ends after the epoch in hand, and does not go on behind the daemon.
                stop.set()
                self._metrics.export_written.labels(name).inc(runner.status.bytes_total - written)
            status = runner.status
            assert status.position is not None, "a log has at least its genesis, and that was exported"
            self._metrics.export_epoch.labels(name).set(status.position.epoch)
            self._metrics.export_bytes.labels(name).set(status.last_bytes)
            return status.position.epoch

        return export

    async def _watch(self) -> None:
        """Shows how far behind the source and the views are, and what room the log has."""
        while True:
            self._show_lag()
            for view in self._views:
                seconds = view.behind.see(self._head.epoch, view.done, time.monotonic())
                self._metrics.view_lag_epochs.labels(view.name).set(max(0, self._head.epoch - view.done))
                self._metrics.view_lag_seconds.labels(view.name).set(seconds)
            with suppress(OSError):
                disk = await asyncio.to_thread(shutil.disk_usage, self.settings.path)
                self._metrics.disk_free.set(disk.free)
                self._metrics.disk_size.set(disk.total)
            await asyncio.sleep(_WATCH_S)

    def _show_lag(self) -> None:
        lags = self._source.lag_records()
        for partition, lag in lags.items():
            self._metrics.lag_records.labels(partition).set(lag)
        if (times_ms := self._head.record.record_time_ms) is not None:
            self._record_time_ms = times_ms[1]  # An epoch without samples has none: the one before counts.
        age_s = 0.0
        if self._record_time_ms is not None and any(lags.values()):
            age_s = max(0.0, time.time() - self._record_time_ms / 1000)
        self._metrics.lag_seconds.set(age_s)

    async def _hold_forever(self) -> None:
        """Renews the leases of the views, which hold epochs back also while a view fails, and shows who else does."""
        while True:
            with suppress(OSError):
                for _ in range(_SHOW_READERS_EVERY):
                    await asyncio.to_thread(self._holds.renew)
                    await asyncio.sleep(_WATCH_S)
                await asyncio.to_thread(self._holds.show)

    async def _fold_forever(self) -> None:
        """Folds a base when enough epochs have gathered, then removes epochs that nobody needs any more."""
        pause_s = _FOLD_PAUSE_FIRST_S
        while True:
            try:
                await self._until_fold_is_due(max(await asyncio.to_thread(self._log.bases), default=0))
                await self._fold()
                logger.info("folded a base at epoch %d", max(await asyncio.to_thread(self._log.bases)))
            except (LogError, OSError) as error:
                # Training needs no base: only the log grows, and recovery takes longer.
                logger.error("folding a base failed, it is tried again in %.0f s: %s", pause_s, error)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _FOLD_PAUSE_MAX_S)
            else:
                pause_s = _FOLD_PAUSE_FIRST_S

    async def _until_fold_is_due(self, newest: int) -> None:
        """Waits until enough epochs follow base `newest`, or enough bytes."""
        base_bytes = await asyncio.to_thread(self._log.base_bytes, newest)
        seen, held = newest, 0
        while not fold_is_due(self.settings, base_bytes, seen - newest, held):
            await self._head.beyond(seen)
            epochs = range(seen + 1, self._head.epoch + 1)
            seen, held = self._head.epoch, held + await asyncio.to_thread(self._log.epochs_bytes, epochs)

    async def _fold(self) -> None:
        await asyncio.to_thread(self._holds.renew)  # what is collected afterwards depends on it
        holding = self.settings.holding
        command = [sys.executable, "-m", "streamtrain.log.fold", str(self.settings.path)]
        options = ["--keep", str(self.settings.keep_epochs), "--nice", str(_FOLD_NICENESS)]
        options += ["--reader-lease", str(holding.lease_s), "--hold-max", str(holding.epochs_max)]
        # Not the loop's own subprocesses: uvloop forks through Python, and a process with JAX's threads must not.
        # A group of its own: Ctrl-C is the daemon's to handle.
        process = subprocess.Popen(  # noqa: ASYNC220
            [*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, process_group=0
        )
        ending = asyncio.create_task(asyncio.to_thread(process.communicate), name="fold's end")
        try:
            _, stderr = await asyncio.shield(ending)
        except asyncio.CancelledError:
            # A fold that is killed leaves the log as it was: a base appears whole or not at all.
            process.kill()
            # It comes at once, and closes the pipe, which a thread that had not begun would leave open.
            await ending
            raise
        if process.returncode:
            raise LogError(
                f"it ended with {process.returncode}: {stderr.decode(errors='replace')[-2000:].strip()}"
            )
        self._tell_warnings(stderr.decode(errors="replace"))

    def _tell_warnings(self, output: str) -> None:
        """Warnings of the fold (a reader too far behind, a file that is no registration), each once while it lasts."""
        lines = {line.removeprefix("WARNING ") for line in output.splitlines() if line.startswith("WARNING ")}
        for line in sorted(lines - self._fold_warnings):
            logger.warning("%s", line)
        self._fold_warnings = lines


def _epoch_of(runner: ExportRunner) -> int | None:
    position = runner.status.position
    return None if position is None else position.epoch
