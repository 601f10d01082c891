"""Redoes an epoch from the source and compares the bits: the proof that a model is what its log says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter

import numpy as np

from streamtrain import plugins
from streamtrain.config import Job
from streamtrain.errors import EpochMissing, OffsetOutOfRange
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.format import content_digest
from streamtrain.log.lineage import losses_of
from streamtrain.log.record import EpochRecord
from streamtrain.log.recovery import restored
from streamtrain.log.rollback import redone
from streamtrain.samples.batch import SampleBatch
from streamtrain.samples.decoded import DecodedChunk
from streamtrain.samples.decoder import Decoder
from streamtrain.samples.minibatch import Minibatch
from streamtrain.sources import Gap, Source, Span
from streamtrain.training.learner import Learner
from streamtrain.training.runtime import differences

__all__ = ["Replay", "replay"]

_RECORDED = ("batch_size", "window_samples", "dense_threads")
"""Of `[training]`, what decides bits."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What a replay found.

    Attributes:
      epoch, steps, samples: what was redone.
      equal: whether every bit of the record came out the same.
      differences: the names of tensors and fields that did not.
      runtime: what is not as it was when the epoch was learned, of the libraries and the processor, in words.
    """

    epoch: int
    steps: int
    samples: int
    equal: bool
    differences: list[str]
    runtime: list[str] = field(default_factory=list)


async def replay(
    job: Job, log: EpochLog, epoch: int, progress: Callable[[int], None] = lambda _: None
) -> Replay:
    """Restores the epoch before `epoch`, learns its recorded spans again, and compares.

    Args:
      job: with a source that can still read the spans.
      log: only read.
      epoch: > 0, and still in the log as a record of its own, like a base or all epochs before it.
      progress: called with the number of steps so far.

    Raises:
      EpochMissing: the epoch, or what it builds on, was collected.
      OffsetOutOfRange: the source no longer holds a span.
    """
    if epoch < 1:
        raise EpochMissing("epoch 0 is the genesis: it learned from nothing, so there is nothing to replay")
    expected = await asyncio.to_thread(log.read, epoch)
    if expected.restores is not None:
        return Replay(epoch, 0, 0, *_compare(expected, await asyncio.to_thread(redone, log, expected)))
    # What the job may change between starts, as it was when the epoch was learned.
    recorded = {name: int(expected.notes[name]) for name in _RECORDED if name in expected.notes}
    recorded.setdefault("dense_threads", 1)  # Before it could be chosen.
    job = job.model_copy(update={"training": job.training.model_copy(update=recorded)})
    source: Source = plugins.load("consumers", job.source.kind)(job.source)
    learner = await asyncio.to_thread(_restored, job, log, epoch, source.sequential)
    decoder = Decoder(job.sample_schema, job.source.codec, leaves_max=job.source.leaves_max)
    source.use_columns(decoder.columns.arrow_schema.names)
    try:
        records = await _Records.read(source, decoder, expected)
    finally:
        await source.close()
    steps = await asyncio.to_thread(_redo, learner, records, expected, progress)
    again = learner.cut()
    equal, parts = _compare(expected, again)
    return Replay(epoch, steps, again.samples, equal, parts, differences(expected.notes))


def _restored(job: Job, log: EpochLog, epoch: int, sequential: bool) -> Learner:
    learner = Learner.warm(job)
    try:
        restored(log, lambda records: learner.restore(records, sequential=sequential), upto=epoch - 1)
    except EpochMissing as error:
        raise EpochMissing(
            f"epoch {epoch} cannot be replayed: what it learned on top of was collected ({error})"
        ) from error
    return learner


class _Records:
    """The decoded records of an epoch's spans, by partition."""

    def __init__(self, chunks: dict[str, list[DecodedChunk]]) -> None:
        self._chunks = chunks

    @staticmethod
    async def read(source: Source, decoder: Decoder, record: EpochRecord) -> _Records:
        chunks: dict[str, list[DecodedChunk]] = {}
        for partition in record.spans.partitions:
            spans = [Span.of(*row[1:]) for row in record.spans if row[1] == partition]
            first, last = min(span.first for span in spans), max(span.next_record for span in spans)
            read = await source.read_span(partition, first, last)
            chunks[partition] = [await asyncio.to_thread(decoder.decode, chunk) for chunk in read]
        return _Records(chunks)

    def minibatch(self, spans: list[Span]) -> Minibatch:
        parts: list[SampleBatch] = []
        bad = []
        for span in spans:
            found = 0
            for chunk in self._chunks[span.partition]:
                batch, refused = chunk.within(span)
                if batch.size or not parts:
                    parts.append(batch)
                found += batch.size
                bad += refused
            if found != span.samples:
                raise OffsetOutOfRange(
                    f"{span.partition} offsets {span.first} to {span.next} held {span.samples} samples when they were "
                    f"learned and hold {found} now (retention or compaction): this epoch cannot be replayed any more"
                )
        return Minibatch(SampleBatch.concat(parts), tuple(spans), tuple(bad), 0.0)


def _redo(learner: Learner, records: _Records, expected: EpochRecord, progress: Callable[[int], None]) -> int:
    """Learns the recorded minibatches in order; a minibatch is the run of spans with one step number and samples."""
    gaps = [loss for loss in losses_of(expected.notes) if loss["epoch"] == expected.epoch]
    if gaps:
        learner.epochs.skip(Gap(gap["partition"], gap["from"], gap["to"], gap["reason"]) for gap in gaps)
    steps = 0
    for steps, (_, rows) in enumerate(groupby(expected.spans, key=itemgetter(0)), 1):
        learner.learn(records.minibatch([Span.of(*row[1:]) for row in rows]))
        progress(steps)
    return steps


def _compare(expected: EpochRecord, again: EpochRecord) -> tuple[bool, list[str]]:
    """Whether the content digests agree, and where they do not, which parts differ."""
    if content_digest(expected) == content_digest(again):
        return True, []
    parts: list[str] = []
    for name in sorted({*expected.tables, *again.tables}):
        before, after = expected.tables.get(name), again.tables.get(name)
        for tensor in ("ids", "weights", "slots", "counts", "last_steps", "tombstones"):
            if before is None or after is None or not _same(getattr(before, tensor), getattr(after, tensor)):
                parts.append(f"tables/{name}/{tensor}")
    for name in sorted({*expected.filters, *again.filters}):
        there, now = expected.filters.get(name), again.filters.get(name)
        for tensor in ("ids", "values", "tombstones"):
            if there is None or now is None or not _same(getattr(there, tensor), getattr(now, tensor)):
                parts.append(f"filters/{name}/{tensor}")
    for kind in ("rules", "dense", "metrics"):
        first, second = getattr(expected, kind), getattr(again, kind)
        parts += [f"{kind}/{n}" for n in sorted({*first, *second}) if not _same(first.get(n), second.get(n))]
    if not _same(expected.spans.spans, again.spans.spans):
        parts.append("spans")
    if not _same(expected.spans.leaves, again.spans.leaves):
        parts.append("leaves of spans")
    if not _same(expected.spans.quarantined, again.spans.quarantined):
        parts.append("quarantined")
    fields = (
        "step_first",
        "step_next",
        "samples",
        "samples_total",
        "bad_samples",
        "quarantined_samples",
        "restores",
        "undone_samples",
        "positions",
        "leaves",
        "watermark_ms",
    )
    parts += [f for f in fields if getattr(expected, f) != getattr(again, f)]
    return False, parts or ["another part of the record"]


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return (
        a is not None
        and b is not None
        and a.dtype == b.dtype
        and a.shape == b.shape
        and a.tobytes() == b.tobytes()
    )
