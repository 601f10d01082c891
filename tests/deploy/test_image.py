"""The image, built and run by podman as Docker would: deploy/container/Containerfile from its first line to its health check.

CI does not ask for it, and skips it: no registry of images can be reached from there, so that the base is made of Debian's packages first, and
the whole takes minutes that CI does not have. As root: `apt-get install podman crun debootstrap`, then `pytest tests/deploy/test_image.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import conftest
from tests.deploy.containerfile import stages
from tests.servers import ROOT, missing_programs

CONTAINER = ROOT / "deploy" / "container"
BUILD, IMAGE = stages(CONTAINER / "Containerfile")
BASE = "docker.io/library/python:3.11-slim-bookworm"
NAME = "localhost/streamtrain:0.1.0"
TIMEOUT_S = 1800
# crun wants control groups of one version: where both are, the second is out of its sight. Podman's mounts are all made in here.
HOLD = "if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi; echo held; exec sleep infinity"
# As docker-compose.yml has it; limits of processor and memory are left out, as they would make control groups.
LOCKED = ("--read-only", "--read-only-tmpfs=false", "--tmpfs", "/tmp:size=64m", "--cap-drop", "all")
LOCKED += ("--security-opt", "no-new-privileges", "--network", "none", "--cgroups", "disabled")
LOCKED += ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096")


class Podman:
    """With storage of its own."""

    def __init__(self, folder: Path, holder: int) -> None:
        self.folder = folder
        self._command = [
            "nsenter",
            "--target",
            str(holder),
            "--mount",
            "podman",
            "--root",
            str(folder / "store"),
        ]
        self._command += ["--runroot", str(folder / "run"), "--storage-driver", "vfs"]
        self._command += ["--cgroup-manager", "cgroupfs", "--events-backend", "none"]

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._command, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
            cwd=ROOT,
            # There may be no systemd to run health checks by; the test does.
            env=os.environ | {"DISABLE_HC_SYSTEMD": "true"},
        )

    def __call__(self, *arguments: str | Path) -> str:
        """What a command prints, which must succeed."""
        done = self.run(*arguments)
        assert done.returncode == 0, f"podman {arguments[0]}:\n{done.stdout[-4000:]}"
        return done.stdout

    def until(self, name: str, *arguments: str) -> None:
        """Waits until a command about a container succeeds."""
        deadline = time.monotonic() + 300
        while self.run(*arguments).returncode:
            assert time.monotonic() < deadline, self("logs", name)
            time.sleep(1)


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """With the image in it."""
    missing = missing_programs("podman", "crun", "debootstrap", "unshare", "nsenter")
    why = f"{' and '.join(missing)} not found on PATH" if missing else ""
    why = why or ("" if os.geteuid() == 0 else "needs root")
    why = why or ("CI has no time for a build" if os.environ.get("CI", "").lower() in ("1", "true") else "")
    if why:
        conftest._absent["container engine (deploy/container is not built)"] = why
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("podman")
    hold = ["unshare", "--mount", "--propagation", "private", "sh", "-c", HOLD]
    with subprocess.Popen(hold, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            podman = Podman(folder, holder.pid)
            podman(
                "import", "--change", "ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", base(), BASE
            )
            (folder / "pip.conf").write_text(pip_settings())
            mounts = ("--volume", "/etc/ssl/certs:/etc/ssl/certs:ro")
            mounts += ("--volume", f"{folder / 'pip.conf'}:/etc/pip.conf:ro")
            how = ("--format", "docker", "--isolation", "chroot", "--layers=false", "--network", "host")
            file = ("--pull=never", "--file", CONTAINER / "Containerfile", "--tag", NAME, ROOT)
            podman("build", *how, *mounts, *file)
            yield podman
        finally:
            holder.kill()
            shutil.rmtree(folder, ignore_errors=True)


def base() -> Path:
    """A root file system that has what the image's base has: Debian 12 and `python`. Made once."""
    tar = ROOT / "build" / "image-base.tar"
    if not tar.exists():
        tree = tar.with_suffix("")
        shutil.rmtree(tree, ignore_errors=True)
        tree.parent.mkdir(exist_ok=True)
        include = "--include=python3,python3-venv,ca-certificates"
        run(["debootstrap", "--variant=minbase", include, "bookworm", str(tree)])
        (tree / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        run(["tar", "-C", str(tree), "-cf", f"{tar}.new", "."])
        Path(f"{tar}.new").rename(tar)
        shutil.rmtree(tree)
    return tar


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def pip_settings() -> str:
    """Where this machine has its packages from; the Containerfile leaves that to whoever builds."""
    get = [str(ROOT / ".venv/bin/python"), "-m", "pip", "config", "get", "global.index-url"]
    index = subprocess.run(get, capture_output=True, text=True, check=False).stdout.strip()
    lines = ["[global]", "cert = /etc/ssl/certs/ca-certificates.crt"]
    return "\n".join([*lines, *([f"index-url = {index}"] if index else [])]) + "\n"


def test_the_image_says_what_the_file_says(podman: Podman) -> None:
    (image,) = json.loads(podman("image", "inspect", NAME))
    config = image["Config"]
    assert (config["User"], config["Entrypoint"], config["Cmd"]) == (
        IMAGE.user,
        IMAGE.entrypoint,
        IMAGE.command,
    )
    assert config["StopSignal"] == "SIGTERM" and config["Volumes"].keys() == {
        "/var/lib/streamtrain",
        "/var/cache/streamtrain",
    }
    assert image["HealthCheck" if "HealthCheck" in image else "Healthcheck"]["Test"] == [
        "CMD",
        *IMAGE.healthcheck,
    ]
    assert set(config["Env"]) == {f"{name}={value}" for name, value in IMAGE.environment.items()}


def test_a_container_learns_is_healthy_and_goes_on_after_a_stop(podman: Podman) -> None:
    """Locked up as docker-compose.yml asks for: a read-only root, no capability, no other user's files."""
    etc = podman.folder / "etc"
    etc.mkdir()
    warm = (
        (CONTAINER / "warm.toml")
        .read_text()
        .replace("/tmp/warm/samples.jsonl", "/etc/streamtrain/samples.jsonl")
    )
    job = warm.replace("/tmp/warm", "/var/lib/streamtrain").replace("enabled = false", "enabled = true")
    (etc / "job.toml").write_text(job.replace('kind = "files"', 'kind = "files"\nfollow = true'))
    produced = podman("run", "--rm", *LOCKED, NAME, "produce", "--synthetic", "--count", "3000")
    (etc / "samples.jsonl").write_text("".join(x for x in produced.splitlines(True) if x.startswith("{")))
    etc.chmod(0o755)
    volumes = ("--volume", "model:/var/lib/streamtrain", "--volume", "cache:/var/cache/streamtrain")
    podman(
        "run",
        "--detach",
        "--name",
        "daemon",
        *LOCKED,
        *volumes,
        "--volume",
        f"{etc}:/etc/streamtrain:ro",
        NAME,
    )
    podman.until("daemon", "healthcheck", "run", "daemon")
    ready = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9464/readyz').read().decode())"
    assert json.loads(podman("exec", "daemon", "python", "-c", ready)) == {"ready": True, "phase": "learning"}
    learned = "streamtrain inspect model --json | grep -q '\"samples\": 3000'"
    podman.until("daemon", "exec", "daemon", "sh", "-c", f"{learned}")
    # What was compiled while the image was built is what runs.
    find = ("exec", "daemon", "find", "/var/cache/streamtrain", "-type", "f")
    assert len(podman(*find).splitlines()) > 50
    assert podman(*find, "-newer", "/etc/streamtrain/job.toml") == ""
    podman("stop", "--time", "45", "daemon")
    assert podman("inspect", "--format", "{{.State.ExitCode}}", "daemon").strip() == "0"
    assert {line.split(" ", 1)[1] for line in podman("diff", "daemon").splitlines()} <= {
        "/etc",
        "/etc/streamtrain",
    }
    podman("start", "daemon")
    podman.until("daemon", "healthcheck", "run", "daemon")
    assert "recovered epoch" in podman("logs", "daemon")
    refused = podman("exec", "daemon", "sh", "-c", "touch /opt/streamtrain/x /x 2>&1 | grep -c Read-only")
    assert refused.strip() == "2"
    podman("stop", "--time", "45", "daemon")
    podman("rm", "daemon")
