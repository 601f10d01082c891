"""The shipped rules and dashboard against a real daemon and follower, watched by a real Prometheus.

Time runs a hundred times faster in the rules (tests/prometheus.py); conditions, thresholds and queries are those that are shipped.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import require
from tests.daemon import Daemon, until
from tests.deploy.stream import Clicks
from tests.prometheus import SHIPPED, PrometheusServer
from tests.servers import ROOT, KafkaServer, RedisServer, free_port

DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "streamtrain.json"
TOPIC = "watched-clicks"
JOB = """
name = "watched"
[source]
kind = "kafka"
bootstrap_servers = "{kafka}"
topic = "{topic}"
start = "earliest"
[schema]
labels = ["click"]
[schema.slots]
user = {{}}
item = {{}}
[tables.main]
dim = 4
memory_bytes_max = 300000
admission = {{ kind = "count", threshold = 2 }}
[model]
kind = "mlp"
hidden = [8]
[training]
batch_size = 64
linger_ms = 20
window_samples = 1000
[training.bad_samples]
share_max = 0.9
dead_letters = {{ kind = "file", path = "{folder}/dead.jsonl" }}
[log]
path = "{folder}/log/model"
epoch_interval_s = 0.25
[store]
url = "{redis}"
[[exports]]
kind = "deltas"
path = "{folder}/serving/exports"
"""


class WatchedDaemon(Daemon):
    """A daemon that compiles while samples wait once `trigger` exists."""

    def __init__(self, config: Path, trigger: Path, **environment: str) -> None:
        super().__init__(config, **environment)
        self._command = [sys.executable, "-m", "tests.deploy.forgetful", str(trigger), "run", str(config)]


@dataclass(slots=True)
class Watched:
    """All that runs."""

    folder: Path
    clicks: Clicks
    redis: RedisServer
    prometheus: PrometheusServer
    follower: subprocess.Popen[bytes]

    def until_firing(self, *names: str) -> None:
        """Waits until each of these has fired, at one time or another."""
        missing = set(names)

        def fired() -> bool:
            missing.difference_update(self.prometheus.alerts())
            return not missing

        until_none_is_left(fired, missing, "have not fired", 60)

    def until_quiet(self) -> None:
        """Waits until nothing fires."""
        firing: set[str] = set()

        def quiet() -> bool:
            firing.clear()
            firing.update(self.prometheus.alerts())
            return not firing

        until_none_is_left(quiet, firing, "have not resolved", 90)


def until_none_is_left(
    condition: Callable[[], bool], left: Collection[str], what: str, timeout_s: float
) -> None:
    """Polls until `condition()`, which takes from `left`; fails with what is left."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"these {what} within {timeout_s:.0f} s: " + "\n".join(
            sorted(left)
        )
        time.sleep(0.1)


@contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own, which a test may fill."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)]
    mounted = subprocess.run(mount, capture_output=True, check=False, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=False)


def fill(disk: Path, share: float) -> Path:
    """A file that leaves `1 - share` of the disk; of a full one, nothing."""
    ballast = disk / "ballast"
    stat = os.statvfs(disk)
    left = int(stat.f_blocks * (1 - share))
    with ballast.open("wb") as file, contextlib.suppress(OSError):
        while os.statvfs(disk).f_bfree > left:
            file.write(bytes(stat.f_frsize))
            file.flush()
    return ballast


@contextmanager
def held_away(path: Path) -> Iterator[None]:
    """Inside there is no file but a directory in its place: nobody can put another one there."""
    path.rename(aside := path.with_name("aside"))
    path.mkdir()
    try:
        yield
    finally:
        path.rmdir()
        aside.rename(path)


@contextmanager
def following(exports: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "streamtrain", "follow", str(exports), "--listen", f"127.0.0.1:{port}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def watched(kafka: KafkaServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A daemon with all that the dashboard shows, its follower, and who watches them."""
    require("Prometheus", "prometheus")
    require("Redis", "redis-server", "redis-cli")
    asyncio.run(kafka.create_topic(TOPIC, 2))
    folder = tmp_path_factory.mktemp("watched")
    job = folder / "job.toml"
    ports = {"streamtrain": free_port(), "streamtrain-follower": free_port()}
    with ExitStack() as stack:
        stack.enter_context(small_disk(folder / "log", 96))
        serving = stack.enter_context(small_disk(folder / "serving", 48))
        redis = stack.enter_context(RedisServer())
        job.write_text(JOB.format(kafka=kafka.bootstrap_servers, topic=TOPIC, redis=redis.url, folder=folder))
        clicks = stack.enter_context(Clicks(kafka.bootstrap_servers, TOPIC))
        environment = {"STREAMTRAIN__HTTP__PORT": str(ports["streamtrain"])}
        daemon = stack.enter_context(WatchedDaemon(job, folder / "forget", **environment))
        follower = stack.enter_context(following(serving / "exports", ports["streamtrain-follower"]))
        targets = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
        daemon.until_says("learning: epoch")
        prometheus = stack.enter_context(PrometheusServer(targets))
        yield Watched(folder, clicks, redis, prometheus, follower)


def test_prometheus_takes_the_shipped_rules_and_nothing_fires_while_all_is_well(watched: Watched) -> None:
    rules = watched.prometheus.rules()
    shipped = (SHIPPED / "rules.yml").read_text()
    assert len(rules) == shipped.count("- alert:") + shipped.count("- record:") > 12
    until(
        lambda: watched.prometheus.query("streamtrain_follower_event_to_visible_seconds_count > 30"),
        "some seconds of deltas",
    )
    watched.until_quiet()
    assert all(rule["health"] == "ok" for rule in watched.prometheus.rules())


def test_each_alert_fires_on_its_condition_and_resolves_behind_it(watched: Watched) -> None:
    folder, clicks = watched.folder, watched.clicks
    fired: set[str] = set()

    def driven(*names: str) -> None:
        watched.until_firing(*names)
        fired.update(names)

    # Records that are ten minutes old; a full disk below the exports; then a store that does not answer, so that nothing is
    # learned of rows that are not in memory.
    clicks.late_s = 600.0
    driven("StreamtrainFreshnessBurnFast", "StreamtrainFreshnessBurnSlow")
    ballast = fill(folder / "serving", 1.0)
    until(
        lambda: watched.prometheus.query('streamtrain_view_lag_seconds{view="deltas"} > 0'), "a late export"
    )
    os.kill(watched.redis.pid, signal.SIGSTOP)
    try:
        driven(
            "StreamtrainNotLearning",
            "StreamtrainLagRising",
            "StreamtrainStoreBehind",
            "StreamtrainExportBehind",
        )
    finally:
        os.kill(watched.redis.pid, signal.SIGCONT)
        ballast.unlink()
        clicks.late_s = 0.0

    # Labels and records go bad; programs are lost; the log's disk is nearly full; the manifest is gone.
    until(
        lambda: not watched.prometheus.alerts() & {"StreamtrainNotLearning", "StreamtrainExportBehind"},
        "calm",
    )
    clicks.random_labels, clicks.bad_share = True, 0.1
    (folder / "forget").touch()
    ballast = fill(folder / "log", 0.93)
    manifest = folder / "serving" / "exports" / "manifest.json"
    with held_away(manifest):
        driven("StreamtrainCompilations", "StreamtrainFollowerFailing", "StreamtrainDiskFilling")
    driven("StreamtrainDeadLetterFlood", "StreamtrainQualityDrop")
    ballast.unlink()
    clicks.random_labels, clicks.bad_share = False, 0.0

    watched.follower.send_signal(signal.SIGSTOP)
    driven("StreamtrainDown")
    watched.follower.send_signal(signal.SIGCONT)

    assert fired == {rule["name"] for rule in watched.prometheus.rules() if rule["type"] == "alerting"}
    watched.until_quiet()


def queries() -> list[str]:
    """What the dashboard asks, for all jobs and instances."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    for name, value in (("$job", ".*"), ("$instance", ".*"), ("$__rate_interval", "20s")):
        expressions = [expression.replace(name, value) for expression in expressions]
    return expressions


def test_every_query_of_the_dashboard_returns_data(watched: Watched) -> None:
    empty = set(queries())
    assert len(empty) > 50

    def answered() -> bool:
        empty.difference_update(
            [query for query in empty if any(map(math.isfinite, watched.prometheus.query(query)))]
        )
        return not empty

    until_none_is_left(answered, empty, "have no data", 30)


def test_the_metrics_follow_the_conventions_of_prometheus(watched: Watched) -> None:
    for address in watched.prometheus.targets.values():
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            checked = subprocess.run(
                ["promtool", "check", "metrics"], input=answer.read(), capture_output=True, check=False
            )
        assert checked.returncode == 0, (checked.stdout + checked.stderr).decode()
