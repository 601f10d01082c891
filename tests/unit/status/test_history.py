"""Rates and charts of the last minutes."""

from __future__ import annotations

import math
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from streamtrain.metrics import Metrics
from streamtrain.status.history import POINTS_MAX, History
from streamtrain.status.readings import Readings


def readings(name: str, value: float, **labels: str) -> Readings:
    sample = SimpleNamespace(name=name, labels=labels, value=value)
    return Readings([SimpleNamespace(samples=[sample])])


def test_a_rate_is_over_the_last_looks_only() -> None:
    history = History()
    counts = [0, 1000, 1010, 1020, 1030, 1040, 1050]
    for i, count in enumerate(counts):
        history.add(readings("n_total", count), 2.0 * i, i)
    assert history.span_s == 10.0
    assert history.rate("n_total") == (1050 - 1000) / 10
    assert history.rate("another_total") is None


def test_there_is_no_rate_before_the_second_look() -> None:
    history = History()
    assert history.rate("n_total") is None
    history.add(readings("n_total", 5), 0.0, 0)
    assert history.rate("n_total") is None


def test_a_counter_that_begins_between_two_looks_counts_from_zero() -> None:
    history = History()
    history.add(Readings([]), 0.0, 0)
    history.add(readings("n_total", 6, stage="train"), 2.0, 2000)
    assert history.rate("n_total", stage="train") == 3.0
    assert history.rate("n_total", stage="cut") is None


@given(looks=st.integers(0, 2 * POINTS_MAX))
def test_charts_have_equal_columns_and_a_bound(looks: int) -> None:
    history = History()
    for i in range(looks):
        name = "streamtrain_prequential"
        history.add(
            readings(name, i, label="click", measure="log_loss", over="window") if i % 2 else Readings([]),
            2.0 * i,
            i,
        )
    described = history.describe()
    length = min(looks, POINTS_MAX)
    assert described["at_ms"] == list(range(looks - length, looks))
    columns = [described["samples_per_s"], described["lag_records"]]
    columns += [*described["auc"].values(), *described["calibration"].values()]
    assert {len(column) for column in columns} == {length}
    assert set(described["auc"]) == ({"click"} if length > 1 else set())


def test_readings_are_what_a_registry_shows() -> None:
    metrics = Metrics()
    metrics.samples.inc(7)
    metrics.lag_records.labels("clicks:0").set(3)
    metrics.lag_records.labels("clicks:1").set(4)
    metrics.feature_events.labels("main", "admitted").inc(5)
    metrics.feature_events.labels("other", "admitted").inc(6)
    metrics.epoch_rows.observe(12)
    now = Readings(metrics.registry.collect())
    assert now.value("streamtrain_samples_total") == 7
    assert now.value("streamtrain_lag_records") is None, "it has a label"
    assert now.total("streamtrain_lag_records") == 7
    assert now.by("streamtrain_lag_records", "partition") == {"clicks:0": 3, "clicks:1": 4}
    assert now.by("streamtrain_feature_events_total", "event", table="main") == {"admitted": 5}
    assert now.value("streamtrain_epoch_rows_sum") == 12 and now.value("streamtrain_epoch_rows_count") == 1
    assert now.total("nothing") is None and now.by("nothing", "label") == {}
    resident = now.value("process_resident_memory_bytes")
    assert resident is not None and resident > 0 and math.isfinite(resident)
