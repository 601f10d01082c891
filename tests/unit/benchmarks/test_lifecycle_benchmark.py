"""The stream and the arithmetic of the lifecycle benchmark."""

from __future__ import annotations

import numpy as np

from benchmarks.lifecycle import BATCH, SLOTS, Stream, auc, options_of, rules


def test_auc_is_the_chance_that_a_positive_is_scored_above_a_negative() -> None:
    scores, labels = np.array([0.1, 0.4, 0.35, 0.8], np.float32), np.array([0, 0, 1, 1], np.float32)
    assert auc(scores, labels) == 0.75
    assert auc(-scores, labels) == 0.25


def test_a_stream_has_about_as_many_ids_as_were_asked_for_and_half_of_what_occurs_comes_once() -> None:
    asked = 400_000
    streams = [Stream(asked), Stream(asked)]
    values = []
    for step in range(streams[0].steps):
        first, second = (stream.batch(step) for stream in streams)
        for slot in first.ids:
            assert first.ids[slot].values.tobytes() == second.ids[slot].values.tobytes()
            values.append(first.ids[slot].values)
        assert first.labels.tobytes() == second.labels.tobytes()
    _, counts = np.unique(np.concatenate(values), return_counts=True)
    assert 0.85 * asked < len(counts) < 1.05 * asked
    once = np.count_nonzero(counts == 1)
    assert abs(once / (streams[0].steps * BATCH * SLOTS) - 0.5) < 0.02


def test_every_rule_can_be_asked_for_by_name() -> None:
    assert options_of(["--rules", "none", "counting_bloom + expiry"]).rules == [
        "none",
        "counting_bloom + expiry",
    ]
    assert list(rules(10)) == options_of([]).rules
