"""Fixtures for real servers. On CI (`CI=true`) a missing server fails the tests; elsewhere it skips them, loudly.

`make test` runs several files at a time (pytest-xdist): each of its processes has servers of its own, which tests may stop.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import hypothesis
import pytest

from streamtrain.dense.compiled import keep_compiled
from tests.servers import KafkaServer, RedisCluster, RedisServer, ServerFailed, missing_programs

# Hundreds of tests compile the same few programs: where a daemon of this user keeps them, they are compiled once.
keep_compiled("auto")

# A first example may compile a kernel; how long one takes is the benchmarks' business.
hypothesis.settings.register_profile("streamtrain", deadline=None, print_blob=True)
hypothesis.settings.load_profile("streamtrain")

_absent: dict[str, str] = {}


def require(server: str, *programs: str) -> None:
    """Ends the test where a program is missing: failed on CI, skipped elsewhere."""
    if missing := missing_programs(*programs):
        _refuse(server, f"{' and '.join(missing)} not found on PATH")


def _refuse(server: str, why: str) -> None:
    """Ends the test: failed where every server is required, skipped elsewhere."""
    _absent[server] = why
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(f"no real {server}: {why}; CI=true requires it", pytrace=False)
    pytest.skip(f"no real {server}: {why}")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores, as many tests wait; but few, as each process starts a broker."""
    return min(len(os.sched_getaffinity(0)) + 1, 4)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests stay together, for what they share; files go to whoever is free, in their order: servers first, units last."""
    from xdist.scheduler import LoadFileScheduling

    # By default it begins with the files of the most tests; the longest ones have few.
    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["absent"] = _absent


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    _absent.update(getattr(node, "workeroutput", {}).get("absent", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for server, why in sorted(_absent.items()):
        terminalreporter.write_line(f"NOT TESTED against a real {server}: {why}", yellow=True, bold=True)


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaServer]:
    """The session's Kafka broker. Tests name their own topics; one that stops the broker starts it again."""
    require("Kafka", "java", "mvn")
    try:
        with KafkaServer() as server:
            yield server
    except ServerFailed as error:
        _refuse("Kafka", str(error))


@pytest.fixture(scope="session")
def _session_redis() -> Iterator[RedisServer]:
    require("Redis", "redis-server", "redis-cli")
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_server(_session_redis: RedisServer) -> RedisServer:
    """The session's Redis, empty; started again where the test before left it stopped."""
    _session_redis.start()
    _session_redis.flush()
    return _session_redis


@pytest.fixture
def start_redis() -> Iterator[Callable[..., RedisServer]]:
    """Starts Redis servers of the test's own, with `RedisServer`'s arguments; all end with the test."""
    require("Redis", "redis-server", "redis-cli")
    with ExitStack() as servers:
        yield lambda *arguments, **options: servers.enter_context(RedisServer(*arguments, **options))


@pytest.fixture(scope="session")
def _session_redis_cluster() -> Iterator[RedisCluster]:
    require("Redis Cluster", "redis-server", "redis-cli")
    with RedisCluster() as cluster:
        yield cluster


@pytest.fixture
def redis_cluster(_session_redis_cluster: RedisCluster) -> RedisCluster:
    """The session's Redis Cluster of three masters, empty; nodes that were left stopped are started again."""
    _session_redis_cluster.start()
    _session_redis_cluster.flush()
    return _session_redis_cluster
