"""The writer thread: makes one epoch after the other durable. The append to the log is the only commit point."""

from __future__ import annotations

import dataclasses
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable

from streamtrain.errors import LogFull
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.record import EpochRecord
from streamtrain.metrics import Metrics

__all__ = ["Committer", "writer_name"]

logger = logging.getLogger(__name__)

_RETRY_S = 1.0


def writer_name() -> str:
    """Who this process is, for people who read the log."""
    return f"{socket.gethostname()}/{os.getpid()}"


class Committer:
    """Appends records in a thread of its own, one at a time.

    Args:
      log: opened, its head the record before the first one submitted.
      previous: the head's digest.
      on_committed: called in the writer thread after each record is durable, with the record and its digest.
      metrics: counts.
    """

    def __init__(
        self,
        log: EpochLog,
        previous: str,
        on_committed: Callable[[EpochRecord, str], None],
        metrics: Metrics,
    ) -> None:
        self._log, self._previous = log, previous
        self._on_committed, self._metrics = on_committed, metrics
        self._slot: queue.Queue[EpochRecord | None] = queue.Queue(1)
        self._idle = threading.Event()
        self._idle.set()
        self._abandon = threading.Event()
        self._failure: BaseException | None = None
        self.full = False
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether an epoch is on its way to the disk."""
        self._check()
        return not self._idle.is_set()

    def submit(self, record: EpochRecord) -> None:
        """Hands a record over; waits until the one before it is durable.

        Raises:
          Whatever the writing of an earlier record raised: Fenced above all.
        """
        self.drain()
        self._idle.clear()
        self._slot.put(record)

    def drain(self) -> None:
        """Waits until everything submitted is durable. Raises as `submit`."""
        while not self._idle.wait(0.1):
            self._check()
        self._check()

    def abandon(self) -> None:
        """Gives up a record that finds no room: it was never promised to anyone, and is learned again."""
        self._abandon.set()

    def close(self) -> None:
        """Ends the thread, after the record in hand."""
        self.abandon()
        self._slot.put(None)
        self._thread.join()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while (record := self._next()) is not None:
            try:
                with self._metrics.stages.busy("commit"):
                    self._write(record)
            except BaseException as error:
                # Handed to the trainer thread by its next call; the thread goes on to be closed like any other.
                self._failure = error
            finally:
                self._idle.set()

    def _next(self) -> EpochRecord | None:
        with self._metrics.stages.waits("commit", "input"):
            return self._slot.get()

    def _write(self, record: EpochRecord) -> None:
        begin = time.perf_counter()
        while True:
            stamped = dataclasses.replace(
                record,
                previous=self._previous,
                committed_at_ms=time.time_ns() // 1_000_000,
                writer=writer_name(),
            )
            try:
                self._previous = self._log.append(stamped)
            except LogFull as error:
                self._pause(error)
            else:
                break
        if self.full:
            self.full = False
            self._metrics.log_full.set(0)
            logger.warning("there is room again: epoch %d is durable, training goes on", record.epoch)
        self._metrics.commit_seconds.observe(time.perf_counter() - begin)
        self._metrics.epoch.set(record.epoch)
        self._metrics.committed.set(stamped.committed_at_ms / 1000)
        self._metrics.epoch_bytes.observe(self._log.epochs_bytes([record.epoch]))
        self._metrics.epoch_rows.observe(sum(len(rows.ids) for rows in record.tables.values()))
        if record.watermark_ms is not None:
            self._metrics.watermark.set(record.watermark_ms / 1000)
        self._on_committed(stamped, self._previous)

    def _pause(self, error: LogFull) -> None:
        if not self.full:
            logger.error("training pauses: %s", error)
        self.full = True
        self._metrics.log_full.set(1)
        if self._abandon.wait(_RETRY_S):
            raise error
