"""Samples in memory: columnar and ragged, with no Python object per sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ragged", "SampleBatch"]


@dataclass(frozen=True, slots=True)
class Ragged:
    """The feature ids of one slot for B samples.

    Attributes:
      values: `[N]` uint64, the ids of all samples one after the other.
      offsets: `[B + 1]` int64, ascending from 0 to N: sample i has `values[offsets[i]:offsets[i + 1]]`.
      weights: `[N]` float32, one per id, or None.
    """

    values: NDArray[np.uint64]
    offsets: NDArray[np.int64]
    weights: NDArray[np.float32] | None = None

    def slice(self, start: int, stop: int) -> Ragged:
        first, last = int(self.offsets[start]), int(self.offsets[stop])
        return Ragged(
            self.values[first:last],
            self.offsets[start : stop + 1] - first,
            None if self.weights is None else self.weights[first:last],
        )

    @staticmethod
    def concat(parts: Sequence[Ragged]) -> Ragged:
        if len(parts) == 1:
            return parts[0]
        offsets = [parts[0].offsets]
        total = int(parts[0].offsets[-1])
        for part in parts[1:]:
            offsets.append(part.offsets[1:] + total)
            total += int(part.offsets[-1])
        weights = None if parts[0].weights is None else np.concatenate([p.weights for p in parts])
        return Ragged(np.concatenate([p.values for p in parts]), np.concatenate(offsets), weights)


@dataclass(frozen=True, slots=True)
class SampleBatch:
    """B samples.

    Attributes:
      size: B.
      ids: by name, each sparse, bucket, cross and sequence slot, in the schema's order.
      dense: `[B, F]` float32, the dense slots side by side in the schema's order; F may be 0.
      labels: `[B, L]` float32 in [0, 1], in the schema's order.
      weights: `[B]` float32, >= 0.
      event_time_ms: `[B]` int64, milliseconds since 1970; TIME_UNKNOWN where neither sample nor record has a time.
      record_time_ms: `[B]` int64, when the record reached the source (Kafka's timestamp; the event time for files).
    """

    size: int
    ids: dict[str, Ragged]
    dense: NDArray[np.float32]
    labels: NDArray[np.float32]
    weights: NDArray[np.float32]
    event_time_ms: NDArray[np.int64]
    record_time_ms: NDArray[np.int64]

    def slice(self, start: int, stop: int) -> SampleBatch:
        """Samples `start` to `stop` (exclusive), as views."""
        if start == 0 and stop == self.size:
            return self
        return SampleBatch(
            stop - start,
            {name: ragged.slice(start, stop) for name, ragged in self.ids.items()},
            self.dense[start:stop],
            self.labels[start:stop],
            self.weights[start:stop],
            self.event_time_ms[start:stop],
            self.record_time_ms[start:stop],
        )

    @staticmethod
    def concat(parts: Sequence[SampleBatch]) -> SampleBatch:
        """The samples of `parts` (one or more, of one schema) in order."""
        if len(parts) == 1:
            return parts[0]
        return SampleBatch(
            sum(p.size for p in parts),
            {name: Ragged.concat([p.ids[name] for p in parts]) for name in parts[0].ids},
            np.concatenate([p.dense for p in parts]),
            np.concatenate([p.labels for p in parts]),
            np.concatenate([p.weights for p in parts]),
            np.concatenate([p.event_time_ms for p in parts]),
            np.concatenate([p.record_time_ms for p in parts]),
        )
