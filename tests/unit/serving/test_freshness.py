"""Percentiles of freshness: weighted by samples, over a bounded window."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.serving.freshness import Freshness, weighted_percentile


def add(freshness: Freshness, samples: int, age_ms: int) -> None:
    freshness.add(
        samples=samples,
        record_time_min_ms=1_000,
        committed_at_ms=1_000 + age_ms // 2,
        visible_at_ms=1_000 + age_ms,
    )


def test_nothing_is_claimed_before_anything_is_measured():
    report = Freshness().report()
    assert (report.deltas, report.samples, report.event_to_visible_p99_ms) == (0, 0, None)


def test_a_delta_counts_once_for_each_of_its_samples():
    freshness = Freshness()
    add(freshness, 99, 200)
    add(freshness, 1, 9_000)
    report = freshness.report()
    assert (report.deltas, report.samples) == (2, 100)
    assert (report.event_to_visible_p50_ms, report.event_to_visible_p99_ms) == (200, 200)
    assert (report.event_to_visible_max_ms, report.commit_to_visible_p99_ms) == (9_000, 100)
    add(freshness, 1, 9_000)
    assert freshness.report().event_to_visible_p99_ms == 9_000


def test_the_window_forgets_the_oldest_deltas():
    freshness = Freshness(window=3)
    for age_ms in (9_000, 100, 100, 100):
        add(freshness, 1, age_ms)
    assert (freshness.report().deltas, freshness.report().event_to_visible_max_ms) == (3, 100)


@given(
    st.lists(st.tuples(st.integers(-1_000, 1_000), st.integers(1, 20)), min_size=1, max_size=30),
    st.integers(1, 100),
)
def test_a_weighted_percentile_is_that_of_the_repeated_values(pairs, percent):
    values, weights = np.array(pairs).T
    repeated = np.sort(np.repeat(values, weights))
    rank = -(-len(repeated) * percent // 100)
    assert weighted_percentile(values, weights, percent) == repeated[rank - 1]
