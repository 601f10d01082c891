"""What systemd is told, seen from its end of the socket."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamtrain.supervisor import Supervisor
from tests.systemd import Systemd


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    with Systemd(tmp_path / "notify") as end:
        yield end


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_readiness_is_told_once_and_what_is_not_new_only_within_its_interval(systemd: Systemd) -> None:
    clock = Clock()
    supervisor = Supervisor(systemd.address, None, clock)
    supervisor.tell("recovering", ready=False, live=True)
    assert systemd.told() == {"STATUS": "recovering", "EXTEND_TIMEOUT_USEC": "300000000"}
    supervisor.tell("learning", ready=True, live=True)
    assert systemd.told() == {"STATUS": "learning", "READY": "1"}
    supervisor.tell("learning", ready=True, live=True)
    assert systemd.told() is None
    clock.now_s = 1.0
    supervisor.tell("learning", ready=True, live=True)
    assert systemd.told() == {"STATUS": "learning"}
    supervisor.stopping("asked\nto")
    assert systemd.told() == {"STOPPING": "1", "STATUS": "asked to"}


def test_a_watchdog_gets_signs_of_life_four_times_a_period_and_none_from_what_hangs(systemd: Systemd) -> None:
    clock = Clock()
    supervisor = Supervisor(systemd.address, 2.0, clock)
    supervisor.tell("recovering", ready=False, live=True)
    told = systemd.told()
    assert told is not None and "EXTEND_TIMEOUT_USEC" in told and "WATCHDOG" not in told
    supervisor.tell("learning", ready=True, live=True)
    assert systemd.told() == {"STATUS": "learning", "READY": "1", "WATCHDOG": "1"}
    clock.now_s = 0.5
    supervisor.tell("learning", ready=True, live=True)
    assert systemd.told() == {"STATUS": "learning", "WATCHDOG": "1"}
    clock.now_s = 1.0
    supervisor.tell("learning", ready=True, live=False)
    assert systemd.told() == {"STATUS": "learning"}


def test_a_start_that_hangs_is_not_extended(systemd: Systemd) -> None:
    Supervisor(systemd.address).tell("starting", ready=False, live=False)
    assert systemd.told() == {"STATUS": "starting"}


def test_a_reload_is_framed_and_is_none_before_readiness(systemd: Systemd) -> None:
    supervisor = Supervisor(systemd.address)
    with supervisor.reloading("reading settings again"):
        assert systemd.told() is None
    assert systemd.told() is None
    supervisor.tell("learning", ready=True, live=True)
    systemd.told()
    with pytest.raises(ValueError), supervisor.reloading("reading settings again"):
        told = systemd.told()
        assert told is not None and told.pop("MONOTONIC_USEC").isdecimal()
        assert told == {"RELOADING": "1", "STATUS": "reading settings again"}
        raise ValueError
    assert systemd.told() == {"READY": "1"}


def test_readiness_that_could_not_be_told_is_told_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = Supervisor(str(tmp_path / "notify"))
    for _ in range(2):
        supervisor.tell("learning", ready=True, live=True)
    assert len(caplog.records) == 1 and "NOTIFY_SOCKET" in caplog.text
    with Systemd(tmp_path / "notify") as systemd:
        supervisor.tell("learning", ready=True, live=True)
        assert systemd.told() == {"STATUS": "learning", "READY": "1"}


def test_the_environment_names_socket_and_watchdog() -> None:
    name = f"@streamtrain-test-{os.getpid()}"
    environment = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "30000000"}
    with Systemd(name) as systemd:
        for pid, expected in ((os.getpid(), True), (1, False)):
            Supervisor.of(environment | {"WATCHDOG_PID": str(pid)}).tell("learning", ready=True, live=True)
            told = systemd.told()
            assert told is not None and ("WATCHDOG" in told) == expected


def test_without_a_supervisor_nothing_is_told_and_nothing_fails(caplog: pytest.LogCaptureFixture) -> None:
    supervisor = Supervisor.of({})
    supervisor.tell("learning", ready=True, live=True)
    supervisor.stopping("done")
    assert not caplog.records
