"""Signs of life of the trainer thread: what counts as hanging, and what as a pause that says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from streamtrain.health import Health
from streamtrain.log.record import EpochRecord
from streamtrain.samples.minibatch import Minibatch
from streamtrain.training.pulse import Pulse
from tests.unit.training.test_trainer import CountingLearner, Feeding, StillCommitter, item, trainer


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class SlowLearner(CountingLearner):
    """One whose steps call `during`."""

    def __init__(self, during: Callable[[], None]) -> None:
        super().__init__()
        self._during = during

    def learn(self, minibatch: Minibatch, ahead: object = None) -> bool:
        self._during()
        return super().learn(minibatch)


class SlowCommitter(StillCommitter):
    """One whose writing calls `during`, which the trainer has to wait for."""

    def __init__(self, during: Callable[[], None]) -> None:
        super().__init__()
        self._during = during

    def submit(self, record: EpochRecord) -> None:
        self._during()
        super().submit(record)

    def drain(self) -> None:
        self._during()
        super().drain()


def test_a_pulse_rests_until_its_first_beat_and_after_its_end() -> None:
    clock = Clock()
    pulse = Pulse(clock)
    clock.now_s += 50
    assert pulse.silent_s == 0
    pulse.beat()
    clock.now_s += 7
    assert pulse.silent_s == 7
    with pytest.raises(ValueError), pulse.resting():
        clock.now_s += 100
        assert pulse.silent_s == 0
        raise ValueError
    clock.now_s += 2
    assert pulse.silent_s == 2
    pulse.end()
    assert pulse.silent_s == 0


def test_a_step_that_hangs_is_seen_and_one_that_ends_is_forgotten() -> None:
    clock, health = Clock(), Health()
    seen: list[float] = []

    def hang() -> None:
        clock.now_s += 300
        seen.append(health.silent_s)

    made = trainer(SlowLearner(hang), Feeding(item(0, 8)), StillCommitter())
    made.pulse = Pulse(clock)
    health.watch(made.pulse)
    made.run()
    assert seen == [300, 300] and health.silent_s == 0


def test_a_log_without_room_is_a_pause_and_no_hanging() -> None:
    clock, health = Clock(), Health()
    seen: list[float] = []

    def wait() -> None:
        clock.now_s += 3600
        seen.append(health.silent_s)

    made = trainer(CountingLearner(), Feeding(item(0, 8)), SlowCommitter(wait), interval_s=0)
    made.pulse = Pulse(clock)
    health.watch(made.pulse)
    made.run()
    assert len(seen) >= 3 and set(seen) == {0}


def test_a_look_for_samples_that_never_ends_is_seen() -> None:
    clock = Clock()
    seen: list[float] = []

    def never() -> None:
        clock.now_s += 300
        seen.append(made.pulse.silent_s)

    made = trainer(CountingLearner(), Feeding(never, never), StillCommitter())
    made.pulse = Pulse(clock)
    made.run()
    assert seen == [300, 300]
