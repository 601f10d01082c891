"""The daemon's views as registered readers of the log, and the gauges of all readers."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from streamtrain.holds import READERS_SHOWN_MAX, Holds
from streamtrain.log.readers import Holding, Readers
from streamtrain.metrics import Metrics


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def readers(tmp_path: Path, clock: Clock) -> Readers:
    return Readers(tmp_path, clock=clock)


def at(readers: Readers) -> dict[str, int | None]:
    return {reader.name: reader.epoch for reader in readers.found()}


def test_a_view_holds_what_it_lacks_while_it_fails_for_long(readers: Readers, clock: Clock) -> None:
    holds = Holds(readers, {"store": lambda: 7}, 600, Metrics(), clock)
    for _ in range(100):
        holds.renew()
        clock.now += 60
        assert readers.held(9, Holding()) == [7]


def test_a_view_that_has_nothing_holds_nothing_and_then_what_it_has(readers: Readers, clock: Clock) -> None:
    position: list[int | None] = [None]
    holds = Holds(readers, {"exporter deltas": lambda: position[0]}, 600, Metrics(), clock)
    holds.renew()
    assert at(readers) == {}
    position[0] = 4
    holds.renew()
    assert at(readers) == {"exporter deltas": 4}


def test_the_next_daemon_takes_the_registration_over(readers: Readers, clock: Clock) -> None:
    Holds(readers, {"store": lambda: 3}, 600, Metrics(), clock).renew()
    clock.now += 20
    successor = Holds(readers, {"store": lambda: 5}, 600, Metrics(), clock)
    successor.renew()
    clock.now += 20
    successor.renew()
    assert at(readers) == {"store": 5}


def test_a_log_that_takes_no_registration_is_told_of_once_and_tried_again(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    readers = Readers(tmp_path / "later", clock=clock)
    holds = Holds(readers, {"store": lambda: 3}, 600, Metrics(), clock)
    with caplog.at_level(logging.WARNING):
        holds.renew()
        holds.renew()
    assert caplog.text.count("cannot register a reader in") == 1
    (tmp_path / "later").mkdir()
    holds.renew()
    assert at(readers) == {"store": 3}


def test_the_gauges_show_those_furthest_behind_and_no_more_series_than_that(
    readers: Readers, clock: Clock
) -> None:
    metrics = Metrics()
    holds = Holds(readers, {}, 600, metrics, clock)

    def shown() -> dict[str, float]:
        families = {family.name: family for family in metrics.registry.collect()}
        return {s.labels["reader"]: s.value for s in families["streamtrain_log_reader_epoch"].samples}

    registrations = [readers.register(f"r{epoch}", epoch) for epoch in range(20)]
    readers.register("undecided")
    holds.show()
    assert metrics.registry.get_sample_value("streamtrain_log_readers") == 21
    assert len(shown()) == READERS_SHOWN_MAX and shown()["undecided"] == -1 and shown()["r14"] == 14
    for registration in registrations[:18]:
        registration.leave()
    holds.show()
    assert shown() == {"undecided": -1, "r18": 18, "r19": 19}
    clock.now += 601
    holds.show()
    assert shown() == {} and metrics.registry.get_sample_value("streamtrain_log_readers") == 0
