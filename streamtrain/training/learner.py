"""The model in memory: sparse half, dense half and evaluation, stepped by one thread."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from streamtrain.config import Job
from streamtrain.dense.net import DenseNet
from streamtrain.dense.threads import use_threads
from streamtrain.log.lineage import losses_note, losses_of, with_losses
from streamtrain.log.record import EpochRecord, TableRows
from streamtrain.log.recovery import Timed
from streamtrain.samples.batch import SampleBatch
from streamtrain.samples.minibatch import Minibatch
from streamtrain.sources import DataLoss
from streamtrain.sparse import crew
from streamtrain.sparse.net import SparseNet
from streamtrain.store.sweeps import Share
from streamtrain.trace import SILENT, Spans
from streamtrain.training.epochs import EpochBuilder
from streamtrain.training.prequential import Measured, Prequential, measure
from streamtrain.training.runtime import NOTE, runtime_note

__all__ = ["Learner"]

logger = logging.getLogger(__name__)


class Learner:
    """Learns minibatches and cuts epochs. Only one thread may use it: it alone mutates the model.

    The state after `learn` depends on the job, the minibatches and their order alone: never on a clock.
    """

    source = ""
    """The identity of the source, which every record carries on."""
    spans: Spans = SILENT
    """Where the phases of a step are shown."""
    lost: Sequence[Mapping[str, Any]] = ()
    """The gaps that the source skipped, which every record carries on: see `losses_of`."""

    def __init__(self, job: Job) -> None:
        layout = job.layout
        crew.set_threads(job.training.threads)
        use_threads(job.training.dense_threads)
        self.layout = layout
        self._no_rows = partial(SparseNet, layout, job.tables, job.seed)
        self.sparse = self._no_rows()
        self.dense = DenseNet(
            layout, job.model, job.optimizer, seed=job.seed, batch_size=job.training.batch_size
        )
        self.prequential = Prequential(layout.labels, job.training.window_samples)
        self._training = job.training
        self._epochs: EpochBuilder | None = None

    @classmethod
    def warm(cls, job: Job) -> Learner:
        """One that has compiled everything: see `warm_up`. Takes seconds, so call it in a thread."""
        learner = cls(job)
        learner.warm_up()
        return learner

    def warm_up(self) -> None:
        """Compiles every kernel and every padded shape, so that nothing compiles while samples wait."""
        begin = time.perf_counter()
        self.sparse.warm_up()
        self.dense.warm_up()
        logger.info("compiled in %.3f s", time.perf_counter() - begin)

    def genesis(self, positions: Mapping[str, int], source: str) -> EpochRecord:
        """The record of a model before its first sample: initial dense parameters, no rows, where reading starts.

        Args:
          positions: what `Source.start` returned.
          source: the source's identity.
        """
        self.source = source
        filters, rules = self.sparse.cut_filters()
        return EpochRecord(
            epoch=0,
            previous="",
            step_first=0,
            step_next=0,
            samples=0,
            samples_total=0,
            positions=dict(positions),
            tables=self.sparse.cut(),
            filters=filters,
            rules=rules,
            dense=self.dense.state(),
            metrics=self.prequential.state(),
            notes=self._notes(),
        )

    def restore(
        self,
        records: Iterable[EpochRecord],
        *,
        sequential: bool,
        rows: bool = True,
        expected: Mapping[str, int] | None = None,
    ) -> EpochRecord:
        """Becomes the model that the records describe, whatever it was before.

        Args:
          records: a base and the epochs after it, or all epochs, in order; at least one.
          sequential: see `Source.sequential`.
          rows: False leaves tables empty whose rows come from the store on demand; those of `SparseNet.resident` are loaded.
          expected: by table, how many rows the first record has: memory for them is found while it is being read.

        Returns:
          The last record: what the log's head holds.
        """
        self.sparse = self._no_rows()
        if expected:
            threading.Thread(target=self.sparse.expect, args=(expected,), name="memory", daemon=True).start()
        timed = Timed(records)
        last = self.advance(timed, sequential=sequential, rows=rows)
        logger.info("restored from %s", timed)
        return last

    def advance(self, records: Iterable[EpochRecord], *, sequential: bool, rows: bool = True) -> EpochRecord:
        """Goes on to the records that follow what it is, as `restore` would have come to them. Learned from nothing since.

        Args, Returns: as `restore`.
        """
        last: EpochRecord | None = None
        for last in records:
            resident = self.sparse.resident
            self.sparse.load({n: t for n, t in last.tables.items() if rows or n in resident})
            self.sparse.load_filters(last.filters, last.rules)
        assert last is not None, "a log has at least its genesis"
        self.sparse.at(last.step_next)
        self.dense.load(last.dense)
        self.prequential.load(last.metrics)
        self._epochs = EpochBuilder(last, sequential=sequential)
        self.source = last.notes.get("source", "")
        self.lost = losses_of(last.notes)
        return last

    @property
    def epochs(self) -> EpochBuilder:
        """What happened since the last cut."""
        assert self._epochs is not None, "restore comes first"
        return self._epochs

    def learn(self, minibatch: Minibatch, ahead: Callable[[], SampleBatch | None] | None = None) -> bool:
        """Scores a minibatch, then learns from it: one step, or none where it holds no sample.

        Args:
          ahead: tells the samples of the minibatch to come, which are prepared beside this one's step; called in another
            thread, and not after this returns. Changes no bit.

        Returns:
          False where it was quarantined: see `step`.
        """
        batch = minibatch.batch
        learned = not batch.size or self.step(batch, self.epochs.step, ahead) is not None
        self.epochs.add(minibatch, quarantined=not learned)
        return learned

    def step(
        self, batch: SampleBatch, step: int, ahead: Callable[[], SampleBatch | None] | None = None
    ) -> np.ndarray | None:
        """Optimizer step number `step` on B >= 1 samples; counts them in the evaluation. `ahead` as of `learn`.

        Returns:
          `[B, L]` float32 logits from before the step; None where it would have left NaN or an infinity in the loss, a
          gradient, a parameter or a row. Then the minibatch is quarantined: everything that is ever cut is, bit
          for bit, as if it had not been there.
        """
        padded = self.dense.bucket(batch.size)
        with self.spans.span("train", "sparse forward"):
            nodes = self.dense.nodes(padded, [batch.rows(level) for level in self.layout.levels])
            activations = self.sparse.forward(batch, step, padded, nodes)
        with self.spans.span("train", "dense"):
            result = self.dense.step(
                activations.pooled,
                activations.sequences,
                _pad(batch.dense, padded),
                _pad(batch.labels, padded),
                _pad(batch.weights, padded),
                activations.shared,
            )
        if not result.finite:
            self.sparse.discard()
            return None
        logits = result.logits[: batch.size]

        def evaluate() -> Measured:
            measured = measure(logits, batch.labels, batch.weights)
            if ahead is not None and (coming := ahead()) is not None:
                self.sparse.prepare(coming)
            return measured

        # Half of the backward pass is for one thread: what it does not need is done beside it, where that is worth it.
        beside = crew.worth_sharing(batch.size * len(batch.ids))
        evaluated = crew.beside(evaluate) if beside else partial(measure, logits, batch.labels, batch.weights)
        try:
            with self.spans.span("train", "sparse backward"):
                kept = self.sparse.backward(
                    result.grad_pooled, result.grad_sequences, step, result.grad_shared
                )
        finally:
            with self.spans.span("train", "evaluate"):
                measured = evaluated()
        if not kept:
            self.dense.undo()
            return None
        self.prequential.count(measured)
        return logits

    def skip(self, loss: DataLoss) -> None:
        """Goes on behind what the source has lost, before the first minibatch of an epoch."""
        self.epochs.skip(loss.gaps)
        self.source = loss.identity
        found = [
            {
                "epoch": self.epochs.epoch,
                "partition": gap.partition,
                "from": gap.first,
                "to": gap.next,
                "reason": gap.reason,
                "at_ms": loss.at_ms,
            }
            for gap in loss.gaps
        ]
        self.lost = with_losses(self.lost, found)

    def evict(self, ids: Mapping[str, np.ndarray]) -> None:
        """Lets go of rows (by table `[E]` uint64 ids) that the store has as they are."""
        for table, gone in ids.items():
            if len(gone):
                self.sparse.evict(table, gone)

    def offer(self, share: Share, oldest: int) -> None:
        """Takes what expiry looks at after the next step of the store's rows; see `ColdRows.offer`."""
        for table, rows in share.rows.items():
            self.sparse.offer(table, rows, share.step, share.whole, oldest)

    def without_expired(
        self, rows: Mapping[str, TableRows], whole: int, tables: Collection[str]
    ) -> dict[str, TableRows]:
        """Of pulled rows, those that have not expired since the store had all steps before `whole`; `tables` have expiry."""
        return {
            table: self.sparse.without_expired(table, pulled, whole) if table in tables else pulled
            for table, pulled in rows.items()
        }

    def insert_pulled(self, rows: Mapping[str, TableRows]) -> None:
        """Takes rows that the store had; a row that is in memory already is newer and stays."""
        for table, pulled in rows.items():
            self.sparse.insert_missing(table, pulled)

    def cut(self) -> EpochRecord:
        """Copies everything that changed since the last cut. Falls between two steps."""
        filters, rules = self.sparse.cut_filters()
        record = self.epochs.cut(
            self.sparse.cut(), self.dense.state(), self.prequential.state(), self._notes()
        )
        return replace(record, filters=filters, rules=rules)

    def _notes(self) -> dict[str, str]:
        """What may change from one start to the next and yet decides bits: padded shapes follow from the batch size."""
        return {
            "batch_size": str(self._training.batch_size),
            "dense_threads": str(self._training.dense_threads),
            "window_samples": str(self._training.window_samples),
            "source": self.source,
            NOTE: runtime_note(),
            **losses_note(self.lost),
        }


def _pad(array: np.ndarray, rows: int) -> np.ndarray:
    """The array with zero rows up to `rows`."""
    if len(array) == rows:
        return np.ascontiguousarray(array)
    padded = np.zeros((rows, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return padded
