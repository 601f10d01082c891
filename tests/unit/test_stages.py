"""What stages tell: counters, and which one bounds a run."""

from __future__ import annotations

import pytest

from streamtrain.metrics import Metrics
from streamtrain.stages import Times, bound, report


def test_work_and_waiting_are_counted_by_stage_also_where_they_raise() -> None:
    metrics = Metrics()
    with metrics.stages.busy("decode") as first:
        pass
    with pytest.raises(ValueError, match="broken"), metrics.stages.busy("decode") as second:
        raise ValueError("broken")
    with metrics.stages.waits("decode", "room") as third:
        pass
    value = metrics.registry.get_sample_value
    assert (
        value("streamtrain_stage_busy_seconds_total", {"stage": "decode"}) == first.seconds + second.seconds
    )
    waits = {"stage": "decode", "on": "room"}
    assert value("streamtrain_stage_wait_seconds_total", waits) == third.seconds
    assert metrics.stages.times["decode"] == Times(first.seconds + second.seconds, 0.0, third.seconds)


@pytest.mark.parametrize(
    ("busy", "expected"),
    [
        ({"read": 9.5, "decode": 3, "train": 4, "commit": 0.1}, "read"),
        ({"read": 1, "decode": 8.5, "train": 8.1}, "decode"),
        ({"read": 1, "decode": 6, "train": 5, "cut": 4}, "train"),
        ({"read": 1, "decode": 6, "train": 5, "cut": 2, "view store": 10}, None),
        ({}, None),
    ],
)
def test_the_busiest_stage_of_the_chain_bounds_unless_it_had_time_to_spare(
    busy: dict[str, float], expected: str | None
) -> None:
    assert bound({stage: Times(seconds) for stage, seconds in busy.items()}, 10) == expected


def test_a_report_names_shares_in_the_order_of_the_chain_and_the_bound() -> None:
    times = {"view store": Times(1.0), "train": Times(9.0, 0.5, 0.25), "read": Times(2.0, 0.0, 8.0)}
    assert list(report(times, 10)) == [
        "stage              busy  waits for input  waits for room",
        "read              20.0%             0.0%           80.0%",
        "train             90.0%             5.0%            2.5%",
        "view store        10.0%             0.0%            0.0%",
        "train bounds this run: the trainer thread is at work all the time",
    ]
    assert list(report({}, 10)) == [] and "no stage bounds" in list(report({"read": Times(1.0)}, 10))[-1]
