"""The units under a real systemd, PID 1 of namespaces of its own: what they start, watch, restart and stop, hardened as they are."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import require
from tests.deploy.kernels import copy_kernels
from tests.integration.test_daemon import JOB, samples, write
from tests.servers import ROOT

DRIVE = """
show() { echo "$1 $(systemctl show --property "$3" --value "$2")"; }
until_shown() { for _ in $(seq 600); do [ "$(systemctl show --property "$2" --value "$1")" = "$3" ] && return; sleep 0.1; done; return 1; }
daemon=streamtrain@clicks follower=streamtrain-follow@clicks
systemctl start $daemon
show started $daemon SubState
show status $daemon StatusText
pid=$(systemctl show --property MainPID --value $daemon)
echo "user $(stat --format %U /proc/$pid)"
tr '\\0' '\\n' </proc/$pid/environ | sed -n 's/^CREDENTIALS_DIRECTORY=/credentials /p'
echo "credential $(cat /proc/$pid/root/run/credentials/$daemon.service/kafka-password)"
systemctl reload $daemon
# The daemon tells of the reload by itself, before the command's end or after it.
until_shown $daemon SubState running
show reloaded $daemon SubState
systemctl start $follower
show follower $follower StatusText
kill -STOP $pid
until_shown $daemon NRestarts 1
until_shown $daemon SubState running
show watched $daemon SubState
systemctl stop $follower
show follower-stopped $follower Result
systemctl stop $daemon
show stopped $daemon Result
systemctl start streamtrain@broken || true
show broken streamtrain@broken ExecMainStatus
show broken-state streamtrain@broken SubState
"""
PROGRAM = """#!/bin/sh
export PYTHONPATH=/opt/repository:/opt/packages LD_LIBRARY_PATH=/opt/python/lib
exec /opt/python/bin/python{version} -m streamtrain "$@"
"""
# The time in which a stopped daemon is noticed is shortened; the rest is as shipped.
WATCHDOG = "[Service]\nWatchdogSec=8\nStandardOutput=append:/run/test/unit.out\nStandardError=append:/run/test/unit.out\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What machine.sh wants to find."""
    etc, var = tmp_path / "etc", tmp_path / "var"
    for made in (etc / "streamtrain", etc / "credstore", etc / "systemd/system/streamtrain@.service.d", var):
        made.mkdir(parents=True)
    job = JOB.format(folder="/run/test", follow="true").replace("/run/test/model", "model")
    (etc / "streamtrain/clicks.toml").write_text(
        job.replace("/run/test/exports", "exports") + "\n[http]\nport = 0\n"
    )
    (etc / "streamtrain/broken.toml").write_text("name = 7\n")
    (etc / "credstore/streamtrain.clicks.kafka-password").write_text("of kafka\n")
    (etc / "systemd/system/streamtrain@.service.d/test.conf").write_text(WATCHDOG)
    write(tmp_path / "samples-1.jsonl", samples(500))
    (tmp_path / "drive.sh").write_text(DRIVE)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    (tmp_path / "streamtrain").write_text(PROGRAM.format(version=version))
    (tmp_path / "streamtrain").chmod(0o755)
    copy_kernels(var / "cache/streamtrain/numba", Path("/opt/repository"))
    for place in (tmp_path, *tmp_path.rglob("*")):
        place.chmod(0o755 if place.is_dir() else place.stat().st_mode | 0o044)
    return tmp_path


def test_systemd_starts_watches_restarts_and_stops_what_it_is_told_of(folder: Path) -> None:
    require("systemd", "unshare", "findmnt", "systemctl")
    if (
        os.geteuid() != 0
        or not Path("/sys/fs/cgroup/systemd").is_dir()
        or Path("/run/systemd/system").exists()
    ):
        pytest.skip(
            "needs root, control groups with a hierarchy named systemd, and a machine without a systemd of its own"
        )
    packages = sysconfig.get_path("purelib")
    command = ["bash", "tests/deploy/machine.sh", str(ROOT), str(folder), sys.base_prefix, packages]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, cwd=ROOT)
    told = "".join(p.read_text() for p in (folder / "drive.out", folder / "unit.out") if p.exists())
    said = dict(line.split(" ", 1) for line in told.splitlines() if line.partition(" ")[2])
    assert run.returncode == 0, f"{run.stdout}{run.stderr}\n{told}"
    assert said["started"] == "running" and said["status"].startswith("learning: epoch "), told
    assert said["user"] == "streamtrain"
    assert said["credentials"] == "/run/credentials/streamtrain@clicks.service"
    assert said["credential"] == "of kafka"
    assert said["follower"].startswith("serving epoch ")
    assert (said["reloaded"], said["watched"]) == ("running", "running")
    assert "settings reloaded: nothing that can be is different" in told
    assert (said["follower-stopped"], said["stopped"]) == ("success", "success")
    assert (said["broken"], said["broken-state"]) == ("2", "failed")
