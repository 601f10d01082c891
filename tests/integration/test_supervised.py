"""The daemon and a follower under a supervisor that speaks sd_notify, as systemd does."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamtrain.errors import SourceError
from streamtrain.service import Service
from streamtrain.supervisor import Supervisor
from tests.daemon import Daemon, until
from tests.fakes import ScriptedSource, chunk, job
from tests.integration.test_daemon import config, samples, write
from tests.systemd import Systemd

PROBES = ("/startupz", "/livez", "/readyz")


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    with Systemd(tmp_path / "notify") as end:
        yield end
    ScriptedSource.script = ()


def until_told(systemd: Systemd, name: str, text: str) -> list[dict[str, str]]:
    """All that was told, up to a datagram whose `name` holds `text`."""
    found: list[dict[str, str]] = []
    until(
        lambda: found.extend(systemd.all_told()) or any(text in told.get(name, "") for told in found),
        f"{name}={text}; told were {found[-3:]}",
    )
    return found


def test_daemon_and_follower_say_when_they_are_ready_how_they_stand_and_that_they_stop(
    tmp_path: Path, systemd: Systemd
) -> None:
    write(tmp_path / "samples-1.jsonl", samples(500))
    supervised = {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "2000000"}
    with Daemon(config(tmp_path, follow=True), **supervised) as daemon:
        told = until_told(systemd, "STATUS", " 500 samples in all")
        ready = [i for i, t in enumerate(told) if "READY" in t]
        assert len(ready) == 1 and told[ready[0]]["STATUS"].startswith("learning: epoch ")
        assert ready[0] > 0 and all("EXTEND_TIMEOUT_USEC" in t for t in told[: ready[0]])
        assert ["WATCHDOG" in t for t in told] == [i >= ready[0] for i in range(len(told))]
        assert [daemon.get(path)[0] for path in (*PROBES, "/metrics")] == [200] * 4
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert until_told(systemd, "STATUS", "stopping")[-1]["STOPPING"] == "1"
    command = [sys.executable, "-m", "streamtrain", "follow", str(tmp_path / "exports")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | supervised) as follower:
        told = until_told(systemd, "STATUS", "serving epoch ")
        assert [t["STATUS"].startswith("serving epoch ") for t in told if "READY" in t] == [True]
        follower.terminate()
        assert follower.wait(60) == 0
        assert until_told(systemd, "STOPPING", "1")


async def test_the_watchdog_starves_when_the_trainer_gives_no_sign_of_life(
    tmp_path: Path, systemd: Systemd
) -> None:
    # A trainer that has to beat more often than it can is one that hangs.
    hanging = job(tmp_path, http={"enabled": False, "trainer_silent_max_s": 1e-9})
    ScriptedSource.script = (chunk(0, 20),)
    service = Service(hanging, supervisor=Supervisor(systemd.address, 0.4))
    running = asyncio.create_task(service.run())
    starved: list[dict[str, str]] = []
    async with asyncio.timeout(60):
        while not starved:
            starved += [t for t in systemd.all_told() if "learning" in t["STATUS"] and "WATCHDOG" not in t]
            await asyncio.sleep(0.02)
    service.stop()
    await asyncio.wait_for(running, 60)


async def test_the_status_names_the_fault_that_ends_the_daemon(tmp_path: Path, systemd: Systemd) -> None:
    ScriptedSource.script = (SourceError("the topic is gone"),)
    with pytest.raises(SourceError):
        await Service(job(tmp_path), supervisor=Supervisor(systemd.address)).run()
    told = systemd.all_told()[-1]
    assert told == {"STOPPING": "1", "STATUS": "SourceError: the topic is gone"}
