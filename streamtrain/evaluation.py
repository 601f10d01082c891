"""One prequential pass over a source, in memory: nothing is written, nothing is committed."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from streamtrain import plugins
from streamtrain.config import Job
from streamtrain.metrics import Metrics
from streamtrain.pipeline import Feed
from streamtrain.samples.decoder import Decoder
from streamtrain.samples.minibatch import Minibatch, Minibatcher
from streamtrain.sources import DataLoss
from streamtrain.training.guard import BadSampleGuard, QuarantineGuard
from streamtrain.training.handoff import End, Handoff
from streamtrain.training.learner import Learner
from streamtrain.training.prequential import Accumulator, Quality

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a pass found.

    Attributes:
      samples, bad_samples, quarantined_samples: how many were learned from, refused, and kept out of the model because
        they would have left NaN or an infinity in it.
      quality: by label, over all samples.
      second_half: by label, over the second half of the samples.
      seconds: wall clock of reading and learning, without compilation.
    """

    samples: int
    bad_samples: int
    quarantined_samples: int
    quality: dict[str, Quality]
    second_half: dict[str, Quality]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON: one label's measures at the top level, several keyed by label."""
        measures = {
            label: {
                "auc": q["auc"],
                "auc_second_half": self.second_half[label].as_dict()["auc"],
                "log_loss": q["log_loss"],
                "normalized_entropy": q["normalized_entropy"],
                "calibration": q["calibration"],
                "label_mean": q["label_mean"],
            }
            for label, q in ((name, quality.as_dict()) for name, quality in self.quality.items())
        }
        head: dict[str, Any] = {
            "samples": self.samples,
            "bad_samples": self.bad_samples,
            "quarantined_samples": self.quarantined_samples,
            "samples_per_s": round(self.samples / self.seconds, 1) if self.seconds else None,
            "seconds": round(self.seconds, 3),
        }
        return head | (next(iter(measures.values())) if len(measures) == 1 else measures)


class _Scores:
    """Scores, labels and weights of every sample, in a temporary file: the second half is known at the end only."""

    def __init__(self, file: IO[bytes], labels: int) -> None:
        self._file, self._width = file, 2 * labels + 1
        self._labels = labels

    def add(self, logits: np.ndarray, minibatch: Minibatch) -> None:
        rows = np.column_stack([logits, minibatch.batch.labels, minibatch.batch.weights])
        self._file.write(rows.astype(np.float32).tobytes())

    def quality(self, names: tuple[str, ...], start: int, stop: int) -> dict[str, Quality]:
        """By label, over samples `start` to `stop`, read back in pieces."""
        accumulator = Accumulator(self._labels)
        self._file.flush()
        rows = (
            np.memmap(self._file, np.float32, "r", shape=(stop, self._width))
            if stop
            else np.empty((0, self._width))
        )
        for at in range(start, stop, 65_536):
            part = np.asarray(rows[at : min(at + 65_536, stop)], np.float32)
            accumulator.add(part[:, : self._labels], part[:, self._labels : -1], part[:, -1])
        return {name: accumulator.quality(i) for i, name in enumerate(names)}


async def evaluate(
    job: Job,
    progress: Callable[[int], None] = lambda _: None,
    look: Callable[[Learner], None] = lambda _: None,
) -> Evaluation:
    """Scores each sample of the source as it is now before learning from it.

    Args:
      job: its log, store and exports are left alone.
      progress: called with the number of samples so far.
      look: called at the end with the model.

    Raises:
      StreamtrainError: as the daemon would.
    """
    metrics = Metrics()
    learner = await asyncio.to_thread(Learner.warm, job)
    source = plugins.load("consumers", job.source.kind)(job.source, until_end=True)
    decoder = Decoder(job.sample_schema, job.source.codec, leaves_max=job.source.leaves_max)
    await asyncio.to_thread(decoder.warm_up)
    source.use_columns(decoder.columns.arrow_schema.names)
    depth = job.training.queue_chunks_max
    handoff = Handoff(depth)
    guard = BadSampleGuard(job.training.bad_samples)
    feed = Feed(source, decoder, guard, handoff, None, metrics, depth=depth)
    labels = job.layout.labels
    with tempfile.TemporaryFile() as file:
        scores = _Scores(file, len(labels))
        try:
            await source.start(None)
            begin = time.perf_counter()
            feeding = asyncio.create_task(feed.run(), name="feed")
            try:
                samples, bad, quarantined = await asyncio.to_thread(
                    _learn_all, learner, handoff, job, scores, progress
                )
                seconds = time.perf_counter() - begin
                await feeding
                look(learner)
            finally:
                # Where learning failed, the feed still waits for room; where reading did, the thread has ended.
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)
        finally:
            await source.close()
        return Evaluation(
            samples,
            bad,
            quarantined,
            scores.quality(labels, 0, samples),
            scores.quality(labels, samples // 2, samples),
            seconds,
        )


def _learn_all(
    learner: Learner, handoff: Handoff, job: Job, scores: _Scores, progress: Callable[[int], None]
) -> tuple[int, int, int]:
    """Learns until the handoff ends. Minibatches are cut by count alone, so that a pass can be repeated.

    Returns:
      Samples learned, records refused, samples quarantined.
    """
    # The clock stands still, so nothing ever lingers.
    minibatcher = Minibatcher(job.training.batch_size, linger_ms=1)
    guard = QuarantineGuard(job.training.quarantine_max)
    samples = bad = quarantined = step = 0

    def learn(minibatch: Minibatch) -> None:
        nonlocal samples, bad, quarantined, step
        bad += len(minibatch.bad)
        if minibatch.batch.size:
            logits = learner.step(minibatch.batch, step)
            step += 1
            guard.see(minibatch.spans, quarantined=logits is None)
            if logits is None:
                quarantined += minibatch.batch.size
            else:
                scores.add(logits, minibatch)
                samples += minibatch.batch.size

    while not isinstance(item := handoff.get(60.0), End):
        if item is None or isinstance(item, DataLoss):
            continue
        minibatcher.add(item.decoded, 0.0)
        while (minibatch := minibatcher.take(0.0)) is not None:
            learn(minibatch)
        progress(samples)
    if (last := minibatcher.flush()) is not None:
        learn(last)
    return samples, bad, quarantined
