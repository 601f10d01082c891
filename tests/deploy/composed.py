"""`docker compose up`, without Docker: every service of docker-compose.yml as a process of a copy of this machine.

Commands, environments, users, mounted files, order of starts and health checks are those of the file and of the image's
Containerfile; programs are those of this machine. Run by test_compose.py, inside copy_of_root.sh.
"""

from __future__ import annotations

import json
import os
import pwd
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.containerfile import stages
from tests.deploy.kernels import copy_kernels
from tests.servers import ROOT, java

TIMEOUT_S = 240.0
IMAGE = stages(ROOT / "deploy/container/Containerfile")[-1]
KAFKA = """#!/bin/sh
exec {java} org.apache.kafka.tools.BrokerApiVersionsCommand "$@"
"""
PROGRAM = """#!/bin/sh
export PYTHONPATH={root}
exec {python} -m streamtrain "$@"
"""
Service = dict[str, Any]


def users() -> dict[str, tuple[int, int]]:
    """By image, whom its processes run as: by the Containerfile, and by what the published images say of theirs."""
    own = tuple(int(number) for number in IMAGE.user.split(":"))
    redis = pwd.getpwnam("redis")
    return {
        "streamtrain": (own[0], own[1]),
        "apache/kafka": (1000, 1000),
        "redis": (redis.pw_uid, redis.pw_gid),
        "prom/prometheus": (65534, 65534),
    }


def prepare_images() -> None:
    """Puts programs where images have them."""
    kafka = Path("/opt/kafka/bin/kafka-broker-api-versions.sh")
    own = Path("/opt/streamtrain/bin/streamtrain")
    for path, text in (
        (kafka, KAFKA.format(java=shlex.join(java("-Xmx64m")))),
        (own, PROGRAM.format(root=ROOT, python=sys.executable)),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    (own.parent / "python").symlink_to(sys.executable)
    # The interpreter may be in root's home, which is this copy's.
    Path("/root").chmod(0o755)


def prepare(services: dict[str, Service], volumes: set[str]) -> None:
    """Mounts files, makes volumes as their image has them, and names all services as their network does."""
    with Path("/etc/hosts").open("a") as hosts:
        hosts.writelines(f"127.0.0.1 {name}\n" for name in services)
    for service in services.values():
        uid, gid = users()[image_of(service)]
        for mount in service.get("volumes", []):
            source, target = mount.split(":")[:2]
            place = Path(target)
            if source in volumes:
                place.mkdir(parents=True, exist_ok=True)
                os.chown(place, uid, gid)
                place.chmod(0o700)
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(place, ignore_errors=True)
            place.symlink_to(ROOT / source)
    cache = Path(IMAGE.environment["NUMBA_CACHE_DIR"])
    copy_kernels(cache)
    uid, gid = users()["streamtrain"]
    for path in (cache.parent, *cache.parent.rglob("*")):
        os.chown(path, uid, gid)


def image_of(service: Service) -> str:
    return str(service["image"]).rpartition(":")[0]


def command_of(service: Service) -> list[str]:
    """What the image runs: its entrypoint with the service's command."""
    match image_of(service):
        case "streamtrain":
            return [*IMAGE.entrypoint, *service.get("command", IMAGE.command)]
        case "apache/kafka":
            heap = service["environment"]["KAFKA_HEAP_OPTS"].split()
            return [*java(*heap), "kafka.Kafka", "/mnt/shared/config/server.properties"]
        case "prom/prometheus":
            return ["prometheus", *service["command"]]
        case _:
            return list(service["command"])


def environment_of(service: Service) -> dict[str, str]:
    path = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    own = IMAGE.environment if image_of(service) == "streamtrain" else {}
    return (
        path | own | {"PATH": f"{own.get('PATH', '')}:{os.environ['PATH']}"} | service.get("environment", {})
    )


def run_as(service: Service, command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    uid, gid = users()[image_of(service)]
    return subprocess.Popen(
        command,
        env=environment_of(service),
        user=uid,
        group=gid,
        extra_groups=[],
        cwd="/",
        umask=0o022,
        **options,
    )


def format_storage(service: Service) -> None:
    """What the image does before the first start."""
    tool = [
        *java("-Xmx128m"),
        "kafka.tools.StorageTool",
        "format",
        "-t",
        service["environment"]["CLUSTER_ID"],
    ]
    with run_as(service, [*tool, "-c", "/mnt/shared/config/server.properties"]) as formatting:
        assert formatting.wait(TIMEOUT_S) == 0


class Composed:
    """All services, started in the order that the file asks for."""

    def __init__(self, services: dict[str, Service], folder: Path) -> None:
        self.services, self.folder = services, folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._deadline = time.monotonic() + TIMEOUT_S

    def output(self, name: str) -> Path:
        return self.folder / f"{name}.out"

    def until(self, condition: Any, what: str) -> Any:
        while not (value := condition()):
            for name, process in self.processes.items():
                if process.poll() and self.services[name].get("restart") != "on-failure":
                    raise SystemExit(f"{name} ended with {process.returncode} while waiting for {what}")
            if time.monotonic() > self._deadline:
                raise SystemExit(f"waited in vain for {what}")
            time.sleep(0.2)
        return value

    def up(self, name: str) -> None:
        """Starts a service when what it depends on is as far as it asks."""
        if name in self.processes:
            return
        service = self.services[name]
        for other, how in service.get("depends_on", {}).items():
            self.up(other)
            if how["condition"] == "service_healthy":
                self.until(lambda other=other: self.healthy(other), f"{other} to be healthy")
            else:
                assert how["condition"] == "service_completed_successfully"
                self.until(lambda other=other: self.processes[other].poll() == 0, f"{other} to complete")
        if image_of(service) == "apache/kafka":
            format_storage(service)
        with self.output(name).open("wb") as output:
            self.processes[name] = run_as(
                service,
                command_of(service),
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    def healthy(self, name: str) -> bool:
        """Runs the health check as Docker would, with more patience, as this machine has other work."""
        service = self.services[name]
        check = service.get("healthcheck", {}).get("test", ["CMD", *IMAGE.healthcheck])
        assert check[0] == "CMD"
        with (self.folder / f"health-{name}.out").open("wb") as output:
            checking = run_as(service, check[1:], stdout=output, stderr=subprocess.STDOUT)
        return checking.wait(60) == 0

    def versions(self) -> list[dict[str, Any]]:
        """What the follower has served."""
        lines = self.output("follower").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and "visible_at_ms" in line]

    def targets(self) -> dict[str, str]:
        """By job, what Prometheus says of it."""
        with urllib.request.urlopen("http://prometheus:9090/api/v1/targets", timeout=10) as answer:
            active = json.load(answer)["data"]["activeTargets"]
        return {target["labels"]["job"]: target["health"] for target in active}

    def down(self) -> dict[str, int]:
        """Stops all, the last first; their exit codes."""
        codes = {}
        for name, process in reversed(self.processes.items()):
            process.send_signal(signal.SIGTERM)
            codes[name] = process.wait(60)
        return codes


def written_elsewhere(volumes: list[str]) -> list[str]:
    """What the daemon's user has written outside of its volumes and /tmp, which a read-only container would not allow."""
    uid, _ = users()["streamtrain"]
    upper = Path("/mnt/upper")
    found = (path for path in upper.rglob("*") if path.lstat().st_uid == uid)
    paths = (Path("/") / path.relative_to(upper) for path in found)
    return [
        str(path) for path in paths if not any(path.is_relative_to(volume) for volume in [*volumes, "/tmp"])
    ]


def main(folder: Path) -> None:
    file = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    # There is no Grafana to be had as a package; its files are looked at by the tests of the dashboard.
    services = {name: service for name, service in file["services"].items() if name != "grafana"}
    prepare_images()
    prepare(services, set(file["volumes"]))
    composed = Composed(services, folder)
    try:
        for name in services:
            composed.up(name)
        composed.until(lambda: composed.healthy("follower"), "the follower to be healthy")
        composed.until(
            lambda: (v := composed.versions()) and v[-1]["samples_total"] > v[0]["samples_total"] + 1000,
            "1,000 samples to be learned and served",
        )
        targets = composed.until(
            lambda: (t := composed.targets()) and "unknown" not in t.values() and t, "Prometheus to scrape"
        )
        versions = composed.versions()
    finally:
        codes = composed.down()
    mounts = [mount.split(":")[1] for mount in services["streamtrain"]["volumes"]]
    result = {"codes": codes, "targets": targets, "versions": versions, "written": written_elsewhere(mounts)}
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
