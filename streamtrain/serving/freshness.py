"""How old what a follower serves is: rolling percentiles over the deltas that it applied."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import deque
from dataclasses import asdict, dataclass

import numpy as np

__all__ = ["BOUNDS_S", "Ages", "Freshness", "FreshnessReport"]

BOUNDS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
"""Upper bounds of the buckets of `Ages`, inclusive; a last bucket has what is older."""


@dataclass(frozen=True, slots=True)
class Ages:
    """Ages of deltas when they became visible, since the follower was made.

    Attributes:
      counts: by bucket, deltas; one bucket more than there are bounds.
      sum_s: sum of the ages.
    """

    counts: tuple[int, ...]
    sum_s: float


@dataclass(frozen=True, slots=True)
class FreshnessReport:
    """Percentiles over the window, in milliseconds; None where nothing was measured yet.

    Attributes:
      deltas: deltas in the window that held samples.
      samples: samples in them; every percentile counts a delta once per sample.
      event_to_visible_p50_ms, event_to_visible_p99_ms, event_to_visible_max_ms: from the arrival of a sample
        in the source (its record time) to when predictions use it. Each delta counts with its OLDEST
        sample's time, so these are upper bounds.
      commit_to_visible_p50_ms, commit_to_visible_p99_ms: from the epoch's commit to when predictions use it.
    """

    deltas: int
    samples: int
    event_to_visible_p50_ms: float | None
    event_to_visible_p99_ms: float | None
    event_to_visible_max_ms: float | None
    commit_to_visible_p50_ms: float | None
    commit_to_visible_p99_ms: float | None

    def as_dict(self) -> dict[str, float | int | None]:
        return asdict(self)


class Freshness:
    """Measures over the last `window` deltas. Thread-safe; memory is bounded by the window."""

    def __init__(self, window: int = 4096) -> None:
        self._seen: deque[tuple[int, int, int]] = deque(maxlen=window)
        self._event, self._commit = _Counted(), _Counted()
        self._lock = threading.Lock()

    def add(self, *, samples: int, record_time_min_ms: int, committed_at_ms: int, visible_at_ms: int) -> None:
        """Counts a delta of `samples` samples (more than none) that became visible at `visible_at_ms`."""
        with self._lock:
            event_ms, commit_ms = visible_at_ms - record_time_min_ms, visible_at_ms - committed_at_ms
            self._seen.append((samples, event_ms, commit_ms))
            self._event.add(event_ms / 1000)
            self._commit.add(commit_ms / 1000)

    def ages(self) -> tuple[Ages, Ages]:
        """From event to visible and from commit to visible, of all deltas since the beginning; each counts once."""
        with self._lock:
            return self._event.ages(), self._commit.ages()

    def report(self) -> FreshnessReport:
        """The percentiles of the window as it is now."""
        with self._lock:
            seen = np.array(self._seen, np.int64).reshape(-1, 3)
        if not len(seen):
            return FreshnessReport(0, 0, None, None, None, None, None)
        weights, event, commit = seen.T
        return FreshnessReport(
            deltas=len(seen),
            samples=int(weights.sum()),
            event_to_visible_p50_ms=weighted_percentile(event, weights, 50),
            event_to_visible_p99_ms=weighted_percentile(event, weights, 99),
            event_to_visible_max_ms=float(event.max()),
            commit_to_visible_p50_ms=weighted_percentile(commit, weights, 50),
            commit_to_visible_p99_ms=weighted_percentile(commit, weights, 99),
        )


class _Counted:
    """Counts ages by bucket."""

    def __init__(self) -> None:
        self._counts, self._sum_s = [0] * (len(BOUNDS_S) + 1), 0.0

    def add(self, age_s: float) -> None:
        self._counts[bisect_left(BOUNDS_S, age_s)] += 1
        # Clocks of two machines may disagree; a sum that falls would look like a restart.
        self._sum_s += max(0.0, age_s)

    def ages(self) -> Ages:
        return Ages(tuple(self._counts), self._sum_s)


def weighted_percentile(values: np.ndarray, weights: np.ndarray, percent: float) -> float:
    """The smallest value that at least `percent` of the weight does not exceed (nearest rank).

    Args:
      values: `[N]`, N >= 1.
      weights: `[N]` integers >= 1: how often each value counts.
      percent: in (0, 100].
    """
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(reached, reached[-1] * percent / 100)])
