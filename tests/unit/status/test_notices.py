"""What the page says first."""

from __future__ import annotations

import pytest

from streamtrain.metrics import Metrics
from streamtrain.status.notices import notices
from streamtrain.status.readings import Readings


def said(metrics: Metrics, silent_s: float = 0.0) -> list[str]:
    return list(notices(Readings(metrics.registry.collect()), silent_s, 120.0))


def test_nothing_is_said_of_a_daemon_that_is_well() -> None:
    metrics = Metrics()
    metrics.samples.inc(10)
    metrics.owner.set(1)
    assert said(metrics, 120.0) == []


def test_a_trainer_that_hangs_is_said() -> None:
    assert said(Metrics(), 121.0) == ["The trainer thread has ended no step for 121 s: /livez fails."]


def test_pauses_losses_and_quarantine_are_said() -> None:
    metrics = Metrics()
    metrics.log_full.set(1)
    metrics.dead_letters_unavailable.set(1)
    metrics.lost_offsets.labels("clicks:0").inc(40)
    metrics.lost_offsets.labels("clicks:1").inc(2)
    metrics.quarantined_minibatches.inc()
    words = said(metrics)
    assert [word.split()[0] for word in words] == ["The", "Refused", "42", "1"]


@pytest.mark.parametrize(("seconds", "late"), [(30.0, False), (31.0, True)])
def test_a_view_that_is_late_is_said_by_name(seconds: float, late: bool) -> None:
    metrics = Metrics()
    metrics.view_lag_seconds.labels("store").set(seconds)
    assert said(metrics) == (["View store has been behind the log for 31 s."] if late else [])


@pytest.mark.parametrize(("free", "scarce"), [(100, False), (99, True)])
def test_a_disk_with_less_than_a_tenth_left_is_said(free: int, scarce: bool) -> None:
    metrics = Metrics()
    metrics.disk_size.set(1000)
    metrics.disk_free.set(free)
    assert said(metrics) == (["The disk of the log has 9.9% of its room left."] if scarce else [])
