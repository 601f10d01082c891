"""The trainer thread: the only one that mutates the model. It cuts minibatches, learns, and cuts epochs."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

from streamtrain.log.record import EpochRecord
from streamtrain.metrics import Metrics
from streamtrain.samples.decoded import DecodedChunk
from streamtrain.samples.minibatch import Minibatch, Minibatcher
from streamtrain.sources import DataLoss
from streamtrain.store.progress import Progress
from streamtrain.store.sweeps import Share, Sweeps
from streamtrain.training.committer import Committer
from streamtrain.training.guard import QuarantineGuard, describe
from streamtrain.training.handoff import End, Handoff, Item
from streamtrain.training.learner import Learner
from streamtrain.training.pulse import Pulse
from streamtrain.training.settings import TrainingSettings

__all__ = ["Trainer"]

logger = logging.getLogger(__name__)

# How long the thread sleeps at most before it looks whether it should stop.
_POLL_S = 0.1
# A busy stream in small minibatches, or a long interval, must not let what an epoch remembers grow without bound.
_SPANS_MAX = 100_000
# An epoch that could not be cut for this many intervals, because the one before it is not durable yet, stops
# training until it is: what is learned but not durable stays bounded.
_INTERVALS_UNCOMMITTED_MAX = 10


class Trainer:
    """Learns what the handoff brings until it ends or `stop` is called.

    Args:
      learner: restored and warm.
      handoff: decoded chunks.
      committer: makes epochs durable, one at a time.
      settings: minibatches.
      epoch_interval_s: least time between two cuts.
      metrics: counts.
      progress: told with each cut which chunks it holds whole; None where nobody asks.
      sweeps: brings the rows that expiry looks at and that are in the store; None where there are none.

    Attributes:
      pulse: beats after each step and each look for samples; rests while the log takes its time.
    """

    def __init__(
        self,
        learner: Learner,
        handoff: Handoff,
        committer: Committer,
        settings: TrainingSettings,
        epoch_interval_s: float,
        metrics: Metrics,
        progress: Progress | None = None,
        sweeps: Sweeps | None = None,
    ) -> None:
        self._learner, self._handoff, self._committer, self._metrics = learner, handoff, committer, metrics
        self._stages = metrics.stages
        self._minibatcher = Minibatcher(settings.batch_size, settings.linger_ms)
        self._guard = QuarantineGuard(settings.quarantine_max)
        self._interval_s = epoch_interval_s
        self._progress, self._sweeps = progress, sweeps
        # The step for which a share of the store's rows is there; what the store had when rows were last pulled.
        self._offered, self._whole = -1, 0
        # Numbers of the chunks that have come, and of those of which samples may still wait for their minibatch.
        self._taken = 0
        self._waiting: deque[int] = deque()
        self._crowded = False
        # What was taken while a minibatch was in hand, and has to wait until that is learned.
        self._held: Item | DataLoss | End | None = None
        self._stop = threading.Event()
        self.pulse = Pulse()
        self._cut_at = time.monotonic()
        self._stepped = False
        self._compilations = 0

    def stop(self) -> None:
        """Finishes the step in hand, commits, and returns from `run`. Samples not yet learned are left unread."""
        self._stop.set()

    def run(self) -> None:
        """Learns. Returns when everything learned is durable.

        Raises:
          TooManyQuarantined: what was learned since the last cut is given up; a restart learns it again.
          Whatever stopped the feed or the log: Fenced, TooManyBadSamples, ...
        """
        try:
            self._run()
        finally:
            self.pulse.end()

    def _run(self) -> None:
        self._cut_at = time.monotonic()
        ended = False
        while not ended and not self._stop.is_set():
            ended = self._take(self._wait_s())
            self._learn_ready()
            self._cut_if_due()
        ready = not self._stop.is_set() and self._share_taken()
        if ready and (last := self._minibatcher.flush()) is not None:
            self._learn(last)
        if self._learner.epochs.pending:
            self._submit()
        with self.pulse.resting():
            self._committer.drain()

    def _wait_s(self) -> float:
        """How long nothing is due."""
        now_ms = time.monotonic() * 1000
        deadlines = [now_ms + _POLL_S * 1000]
        if (linger := self._minibatcher.deadline_ms()) is not None:
            deadlines.append(linger)
        # A cut that is due but has to wait for the writer is looked at again after a poll: no spinning beside it.
        if self._learner.epochs.pending and not self._committer.busy:
            deadlines.append((self._cut_at + self._interval_s) * 1000)
        return max(0.0, (min(deadlines) - now_ms) / 1000)

    def _take(self, timeout_s: float) -> bool:
        """Takes what is there; True at the end."""
        self.pulse.beat()
        item: Item | DataLoss | End | None
        item, self._held = self._held, None
        if item is None:
            with self._stages.waits("train", "input"):
                item = self._handoff.get(timeout_s)
        if isinstance(item, End):
            return True
        if isinstance(item, DataLoss):
            self._skip(item)
        elif item is not None:
            with self._stages.busy("train"):
                self._hold(item)
        return False

    def _take_ahead(self) -> None:
        """Takes what makes the next minibatch full, if it is there: it can be prepared then beside the one in hand.

        What comes with rows of the store, or is no samples, waits for its turn: those belong between two minibatches.
        """
        while self._held is None and self._sweeps is None:
            if self._minibatcher.due:
                return
            item = self._handoff.get(0.0)
            if isinstance(item, Item) and item.bare:
                self._hold(item)
            elif item is None:
                return
            else:
                self._held = item

    def _hold(self, item: Item) -> None:
        self._learner.evict(item.evicted)
        self._insert(item)
        self._add(item.decoded)

    def _insert(self, item: Item) -> None:
        pulled = item.pulled
        if self._sweeps is not None:
            pulled = self._learner.without_expired(pulled, item.whole, self._sweeps.tables)
            self._whole = item.whole
        self._learner.insert_pulled(pulled)

    def _add(self, chunk: DecodedChunk) -> None:
        before = self._minibatcher.chunks
        self._minibatcher.add(chunk, time.monotonic() * 1000)
        self._taken += 1
        if self._minibatcher.chunks > before:
            self._waiting.append(self._taken)

    def _skip(self, loss: DataLoss) -> None:
        """Goes on behind a gap. What came before it is cut first: a replay then has the gap where its epoch begins."""
        while self._share_taken():
            if (minibatch := self._minibatcher.flush()) is None:
                break
            self._learn(minibatch)
        else:
            return
        if self._learner.epochs.pending:
            self._submit()
        self._learner.skip(loss)
        for gap in loss.gaps:
            self._metrics.lost_offsets.labels(gap.partition).inc(gap.lost)
            self._metrics.data_losses.labels(gap.reason).inc()

    def _learn_ready(self) -> None:
        while not self._stop.is_set() and self._share_taken():
            whole = self._taken - self._minibatcher.chunks
            with self._stages.busy("train"):
                minibatch = self._minibatcher.take(time.monotonic() * 1000)
                if minibatch is not None:
                    self._take_ahead()
            if minibatch is None:
                return
            self._tell_if_crowded(minibatch.batch.size, whole)
            self._learn(minibatch)
            self._cut_if_due()

    def _tell_if_crowded(self, size: int, whole: int) -> None:
        """Warns once of a minibatch that could not be filled because memory does not hold the rows of more samples.

        Args:
          size: its samples.
          whole: chunks before those that it holds samples of.
        """
        progress, full = self._progress, self._minibatcher.batch_size
        if self._crowded or progress is None or not progress.urgent or not 0 < size < full:
            return
        # The feed waits for room, and no row waits for the store any more: only this minibatch's are left.
        self._crowded = progress.batch >= whole
        if self._crowded:
            logger.warning(
                "a minibatch has %d samples, not training.batch_size = %d: a table's memory_bytes_max holds no rows for more "
                "of them at once. Nothing is lost, but learning is slow: raise tables.*.memory_bytes_max, or lower "
                "training.batch_size. This is told once",
                size,
                full,
            )

    def _share_taken(self) -> bool:
        """Waits for what expiry looks at after the next step of the store's rows; False: `stop` came first."""
        if self._sweeps is None or (step := self._learner.epochs.step) == self._offered:
            return True
        share = self._sweeps.take(step, 0.0) or self._share_awaited(self._sweeps, step)
        if share is None:
            return False
        self._learner.offer(share, min(share.whole, self._whole))
        self._offered = step
        return True

    def _share_awaited(self, sweeps: Sweeps, step: int) -> Share | None:
        begin, share = time.perf_counter(), None
        while share is None and not self._stop.is_set():
            with self.pulse.resting(), self._stages.waits("train", "input"):
                share = sweeps.take(step, _POLL_S)
            # What is learned becomes durable meanwhile.
            self._cut_if_due()
        if self._minibatcher.pending:
            self._metrics.tier_stalls.labels("expiry").inc()
            self._metrics.tier_stall_seconds.labels("expiry").inc(time.perf_counter() - begin)
        return share

    def _learn(self, minibatch: Minibatch) -> None:
        self.pulse.beat()
        with self._stages.busy("train") as step:
            learned = self._learner.learn(minibatch, self._minibatcher.ahead)
        size = minibatch.batch.size
        if not size:
            return
        if learned:
            self._metrics.step_seconds.observe(step.seconds)
            if not self._stepped:
                self._stepped = True
                self._metrics.first_step.set_to_current_time()
            self._metrics.steps.inc()
            self._metrics.samples.inc(size)
        else:
            self._metrics.quarantined_minibatches.inc()
            self._metrics.quarantined_samples.inc(size)
            logger.warning(
                "quarantined %d samples, which would have left NaN or an infinity in the model: %s",
                size,
                describe(minibatch.spans),
            )
        self._guard.see(minibatch.spans, quarantined=not learned)

    def _cut_if_due(self) -> None:
        # Asked first: it raises what stopped the writer, which no sample may follow for hours.
        busy = self._committer.busy
        since_s = time.monotonic() - self._cut_at
        crowded = self._learner.epochs.spans >= _SPANS_MAX
        urgent = self._progress is not None and self._progress.urgent and not busy
        if not self._learner.epochs.pending or (since_s < self._interval_s and not crowded and not urgent):
            return
        if busy:
            late = crowded or since_s >= self._interval_s * _INTERVALS_UNCOMMITTED_MAX
            if not late and not self._committer.full:
                return
            logger.warning("training pauses: the epoch before this one cannot be written yet")
        self._submit()

    def _submit(self) -> None:
        """Cuts and hands over. Waiting for the epoch before is a pause, which the committer tells of."""
        with self._stages.busy("cut", "train"):
            record = self._cut()
        with self.pulse.resting(), self._stages.waits("train", "room"):
            self._committer.submit(record)

    def _cut(self) -> EpochRecord:
        record = self._learner.cut()
        while len(self._waiting) > self._minibatcher.chunks:
            self._waiting.popleft()
        if self._progress is not None:
            self._progress.cut(
                record.epoch, self._waiting[0] - 1 if self._waiting else self._taken, record.step_next
            )
        begin, self._cut_at = self._cut_at, time.monotonic()
        self._metrics.epoch_seconds.observe(self._cut_at - begin)
        for name in record.tables:
            self._metrics.table_rows.labels(name).set(self._learner.sparse.rows(name))
            self._metrics.table_bytes.labels(name).set(self._learner.sparse.memory_bytes(name))
            self._metrics.show_features(name, *self._learner.sparse.take_figures(name))
            if (shared := self._learner.sparse.collisions(name)) is not None:
                self._metrics.table_collided.labels(name).set(shared.collided)
        self._metrics.show_quality("total", self._learner.prequential.total())
        self._metrics.show_quality("window", self._learner.prequential.window())
        late = self._learner.dense.compilations
        self._metrics.compilations.inc(late - self._compilations)
        self._compilations = late
        return record
