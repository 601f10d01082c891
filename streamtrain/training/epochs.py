"""Collects what happened since the last cut: steps, spans, positions and times. A plain object."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from streamtrain.log.record import EpochRecord, SpanTable, TableRows
from streamtrain.samples.minibatch import Minibatch
from streamtrain.samples.positions import PositionTracker
from streamtrain.sources import TIME_UNKNOWN, Gap

__all__ = ["EpochBuilder"]


class EpochBuilder:
    """Follows one model from epoch to epoch.

    Args:
      last: the newest record of the log; what it holds is where this continues.
      sequential: whether the source's partitions follow one another (see `Source.sequential`).
    """

    def __init__(self, last: EpochRecord, *, sequential: bool) -> None:
        self.epoch = last.epoch + 1
        self.step = last.step_next
        self.samples_total = last.samples_total
        self.watermark_ms = last.watermark_ms
        self._tracker = PositionTracker(last.positions, sequential=sequential, leaves=last.leaves)
        self._begin()

    def _begin(self) -> None:
        self._step_first = self.step
        self._samples = 0
        self._bad = 0
        self._skipped = False
        self._quarantined: list[int] = []
        self._quarantined_samples = 0
        self._partitions: dict[str, int] = {}
        self._spans: list[tuple[int, int, int, int, int]] = []
        self._leaves: list[tuple[int, int]] = []
        self._event_ms: tuple[int, int] | None = None
        self._record_ms: tuple[int, int] | None = None

    @property
    def positions(self) -> dict[str, int]:
        """Where reading would resume after what was added so far."""
        return dict(self._tracker.positions)

    @property
    def pending(self) -> bool:
        """Whether anything was added since the last cut, be it only records that were refused or are lost."""
        return bool(self._spans) or self._skipped

    @property
    def spans(self) -> int:
        """How many spans were added since the last cut."""
        return len(self._spans)

    def add(self, minibatch: Minibatch, *, quarantined: bool = False) -> None:
        """Takes note of a minibatch that was just learned from, or that held bad records only.

        A quarantined one takes a step number and moves the positions; of its samples and their times nothing counts as
        learned.
        """
        self._tracker.advance(minibatch.spans)
        for span in minibatch.spans:
            index = self._partitions.setdefault(span.partition, len(self._partitions))
            self._spans.append((self.step, index, span.first, span.next, span.samples))
            self._leaves.append((span.first_leaf, span.next_leaf))
        self._bad += len(minibatch.bad)
        batch = minibatch.batch
        if quarantined:
            self._quarantined.append(self.step)
            self._quarantined_samples += batch.size
            self.step += 1
        elif batch.size:
            self._event_ms = _widen(self._event_ms, batch.event_time_ms)
            self._record_ms = _widen(self._record_ms, batch.record_time_ms)
            if self._event_ms is not None:
                self.watermark_ms = max(self._event_ms[1], self.watermark_ms or self._event_ms[1])
            self._samples += batch.size
            self.samples_total += batch.size
            self.step += 1

    def skip(self, gaps: Iterable[Gap]) -> None:
        """Goes on behind gaps, before the first minibatch of an epoch."""
        self._tracker.skip(gaps)
        self._skipped = True

    def cut(
        self,
        tables: Mapping[str, TableRows],
        dense: Mapping[str, np.ndarray],
        metrics: Mapping[str, np.ndarray],
        notes: Mapping[str, str],
    ) -> EpochRecord:
        """The record of everything since the last cut; begins the next. The writer fills in `previous` and clock."""
        record = EpochRecord(
            epoch=self.epoch,
            previous="",
            step_first=self._step_first,
            step_next=self.step,
            samples=self._samples,
            samples_total=self.samples_total,
            bad_samples=self._bad,
            quarantined_minibatches=len(self._quarantined),
            quarantined_samples=self._quarantined_samples,
            positions=self.positions,
            leaves=self._tracker.leaves,
            spans=SpanTable(
                tuple(self._partitions),
                np.array(self._spans, np.int64).reshape(-1, 5),
                np.array(self._quarantined, np.int64),
                np.array(self._leaves if any(map(any, self._leaves)) else [], np.int64).reshape(-1, 2),
            ),
            event_time_ms=self._event_ms,
            record_time_ms=self._record_ms,
            watermark_ms=self.watermark_ms,
            tables=tables,
            dense=dense,
            metrics=metrics,
            notes=notes,
        )
        self.epoch += 1
        self._begin()
        return record


def _widen(bounds: tuple[int, int] | None, times_ms: np.ndarray) -> tuple[int, int] | None:
    """The bounds with the times in them. Samples of a source without times, whose schema names none, have none."""
    known = times_ms[times_ms != TIME_UNKNOWN]
    if not len(known):
        return bounds
    low, high = int(known.min()), int(known.max())
    return (low, high) if bounds is None else (min(low, bounds[0]), max(high, bounds[1]))
