"""The Redis store when servers, connections and callers fail at every point."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.crc import key_slot

from streamtrain.errors import StoreError, StoreRefused, StoreUnavailable
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.record import EpochRecord
from streamtrain.store import Store, StoreDescription, StoreSettings, open_store
from streamtrain.store.applier import StoreApplier
from tests.faulty_proxy import FaultyProxy
from tests.reference_store import DIMS, DictRows, ListLog, as_dict, random_record, record_of, rows_of
from tests.servers import RedisCluster, RedisServer, free_port, missing_programs

pytestmark = pytest.mark.redis

StartRedis = Callable[..., RedisServer]


@asynccontextmanager
async def store_at(
    url: str, model_id: str = "model-of-the-test", *, shards: int = 3, **options: object
) -> AsyncIterator[Store]:
    store = open_store(StoreSettings(url=url, **{"timeout_s": 5.0, "retries": 2} | options))  # type: ignore[arg-type]
    assert store is not None
    try:
        await store.open(StoreDescription(model_id, DIMS, shards))
        yield store
    finally:
        await store.close()


def log_of(epochs: int, **options: int) -> tuple[ListLog, DictRows]:
    """A log of epochs 0 to `epochs`, and what a store must hold after it."""
    log, oracle = ListLog(), DictRows()
    for epoch in range(epochs + 1):
        record = random_record(epoch, **options)
        log.append(record)
        oracle.write(record)
    return log, oracle


async def held_by(store: Store, log: ListLog, epoch_min: int) -> dict[str, dict[int, tuple[bytes, ...]]]:
    held = {}
    for table in DIMS:
        records = [*log.records.values(), *log.base_records.values()]
        ids = np.unique(
            np.concatenate([x for r in records for x in (r.tables[table].ids, r.tables[table].tombstones)])
        )
        _, rows = await store.pull(table, ids, epoch_min)
        held[table] = as_dict(rows)
    return held


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 60_000), min_size=1, max_size=4), seed=st.integers(0, 100))
def test_connections_cut_anywhere_leave_a_prefix_that_the_next_try_completes(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, cuts: list[int], seed: int
) -> None:
    monkeypatch.setattr("streamtrain.store.shares.ROWS_MAX", 8)
    log, oracle = log_of(3, rows=100, seed=seed)

    async def scenario() -> None:
        async with (
            FaultyProxy(redis_server.port) as proxy,
            store_at(f"redis://127.0.0.1:{proxy.port}", uuid.uuid4().hex, retries=0) as store,
        ):
            applier = StoreApplier(log, store)
            for cut in cuts:
                proxy.cut_after_bytes = cut
                with suppress(StoreUnavailable):
                    await applier.catch_up(3)
            proxy.cut_after_bytes = None
            assert await applier.catch_up(3) == 3
            assert await held_by(store, log, 3) == oracle.rows

    asyncio.run(scenario())


async def test_a_call_that_ran_but_was_not_answered_is_harmless_when_it_runs_again(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamtrain.store.shares.ROWS_MAX", 8)
    log, oracle = log_of(2, rows=60)
    async with (
        FaultyProxy(redis_server.port) as proxy,
        store_at(f"redis://127.0.0.1:{proxy.port}", timeout_s=0.3, retries=0) as store,
    ):
        await store.load_base(log.read(0))
        for epoch in (1, 2):
            proxy.mute = True
            with pytest.raises(StoreUnavailable, match=r"did not answer within 0\.3 s"):
                await store.apply(log.read(epoch))
            proxy.mute = False
            await store.apply(log.read(epoch))
        assert await held_by(store, log, 2) == oracle.rows


async def test_retries_hide_a_connection_that_is_cut_once(redis_server: RedisServer) -> None:
    log, oracle = log_of(4)
    async with (
        FaultyProxy(redis_server.port) as proxy,
        store_at(f"redis://127.0.0.1:{proxy.port}") as store,
    ):
        await store.load_base(log.read(0))
        for epoch in range(1, 5):
            proxy.cut_after_bytes = 700
            await store.apply(log.read(epoch))
        assert await held_by(store, log, 4) == oracle.rows


async def test_cancelled_applies_leave_a_prefix_and_the_right_answers(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamtrain.store.shares.ROWS_MAX", 8)
    log, oracle = log_of(3, rows=100)
    async with store_at(redis_server.url) as store:
        await store.load_base(log.read(0))
        for epoch in (1, 2, 3):
            for yields in range(0, 60, 7):
                apply = asyncio.create_task(store.apply(log.read(epoch)))
                for _ in range(yields):
                    await asyncio.sleep(0)
                apply.cancel()
                await asyncio.gather(apply, return_exceptions=True)
                assert set((await store.applied_epochs()).values()) <= {epoch - 1, epoch}
            await store.apply(log.read(epoch))
        assert await held_by(store, log, 3) == oracle.rows


async def test_a_redis_killed_in_the_middle_is_unavailable_and_repaired_from_the_log(
    start_redis: StartRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_redis()
    log, oracle = log_of(10)

    def read_and_kill(epoch: int) -> EpochRecord:
        if epoch == 6:
            server.kill()
        return log.records[epoch]

    async with store_at(server.url, retries=0) as store:
        applier = StoreApplier(log, store)
        monkeypatch.setattr(log, "read", read_and_kill)
        with pytest.raises(StoreUnavailable, match=rf"127\.0\.0\.1:{server.port} cannot be reached"):
            await applier.catch_up(10)
        assert (applier.status.applied_epoch, applier.status.errors) == (5, 1)
        assert applier.status.last_error is not None
        with pytest.raises(StoreUnavailable):
            await store.pull("items", np.array([1], np.uint64))
        monkeypatch.undo()
        await asyncio.to_thread(server.start)  # Without a file: it comes back empty.
        assert await applier.catch_up(10) == 10
        assert await held_by(store, log, 10) == oracle.rows
        assert applier.status.last_error is None and applier.status.repairs == 2


async def test_a_real_log_fills_a_real_store(redis_server: RedisServer, tmp_path: Path) -> None:
    log, oracle, digest = EpochLog.create(tmp_path / "log", "model", {}), DictRows(), ""
    for epoch in range(6):
        record = random_record(epoch)
        digest = log.append(replace(record, previous=digest))
        oracle.write(record)
    async with store_at(redis_server.url, log.model.model_id) as store:
        applier = StoreApplier(log, store)
        assert await applier.catch_up(5) == 5
        redis_server.flush()
        assert await applier.repair(5) == 5
        for table, expected in oracle.rows.items():
            found, rows = await store.pull(table, np.array([*expected], np.uint64), epoch_min=5)
            assert found.all() and as_dict(rows) == expected


async def test_a_redis_that_kept_a_file_goes_on_where_it_was(start_redis: StartRedis) -> None:
    server = start_redis("--appendonly", "yes", "--appendfsync", "always")
    log, oracle = log_of(8)
    async with store_at(server.url) as store:
        applier = StoreApplier(log, store)
        await applier.catch_up(4)
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        await applier.catch_up(8)
        assert applier.status.repairs == 1
        assert await held_by(store, log, 8) == oracle.rows


async def test_a_crash_while_a_base_loads_is_noticed_and_the_load_done_again(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamtrain.store.shares.ROWS_MAX", 8)
    log, oracle = log_of(3, rows=200)
    log.fold(3)
    async with FaultyProxy(redis_server.port) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}"
        async with store_at(url, retries=0) as store:
            proxy.cut_after_bytes = 12_000
            with pytest.raises(StoreUnavailable):
                await store.load_base(log.read_base(3))
        async with store_at(url) as store:
            assert None in (await store.applied_epochs()).values()
            with pytest.raises(StoreError):
                await store.pull("items", log.read_base(3).tables["items"].ids)
            await StoreApplier(log, store).catch_up(3)
            assert await held_by(store, log, 3) == oracle.rows


async def test_an_older_base_is_refused_while_a_newer_one_loads(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamtrain.store.shares.ROWS_MAX", 8)
    async with (
        FaultyProxy(redis_server.port) as proxy,
        store_at(f"redis://127.0.0.1:{proxy.port}", retries=0, shards=1) as store,
    ):
        proxy.cut_after_bytes = 6_000
        with pytest.raises(StoreUnavailable):
            await store.load_base(random_record(7, rows=200))
    async with store_at(redis_server.url, shards=1) as store:
        with pytest.raises(StoreRefused, match="base of epoch 7, newer than this process's 3"):
            await store.load_base(random_record(3))


async def test_a_redis_that_hangs_is_unavailable_in_time_and_not_flooded(start_redis: StartRedis) -> None:
    server = start_redis()
    log, _ = log_of(1, rows=300)
    async with store_at(server.url, timeout_s=0.3, retries=1) as store:
        await store.load_base(log.read(0))
        os.kill(server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(StoreUnavailable, match=r"did not answer within 0\.3 s.*store\.timeout_s"):
                await store.apply(log.read(1))
        finally:
            os.kill(server.pid, signal.SIGCONT)
        await store.apply(log.read(1))
        # Connections that timed out are gone on the server's side too.
        assert len(server.cli("CLIENT", "LIST").splitlines()) <= 4 + 1


async def test_a_full_redis_is_unavailable_and_says_what_to_raise(start_redis: StartRedis) -> None:
    server = start_redis("--maxmemory", "3mb")
    big = record_of(0, {"items": rows_of(list(range(60_000)), *DIMS["items"])})
    async with store_at(server.url, retries=0) as store:
        with pytest.raises(StoreUnavailable, match="is full: raise its maxmemory"):
            await store.load_base(big)
        server.cli("CONFIG", "SET", "maxmemory", "100mb")
        await store.load_base(big)
        assert await store.applied_epoch() == 0


async def test_a_redis_that_may_evict_is_refused_with_the_command_that_mends_it(
    start_redis: StartRedis,
) -> None:
    server = start_redis(maxmemory_policy="allkeys-lru")
    with pytest.raises(StoreRefused, match=r"allkeys-lru.*\n.*CONFIG SET maxmemory-policy noeviction"):
        async with store_at(server.url):
            pass
    server.cli("CONFIG", "SET", "maxmemory-policy", "noeviction")
    async with store_at(server.url):
        pass


async def test_the_password_comes_from_a_file_or_the_environment(
    start_redis: StartRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_redis("--user", "trainer", "on", ">s3cret", "~streamtrain:*", "+@all", "-config")
    monkeypatch.setenv("STORE_PASSWORD", "s3cret")
    (tmp_path / "wrong").write_text("no\n")
    url = f"redis://trainer@127.0.0.1:{server.port}"
    async with store_at(url, password_env="STORE_PASSWORD") as store:
        await store.load_base(random_record(0))
    with pytest.raises(StoreRefused, match="refused the password") as caught:
        async with store_at(url, password_file=str(tmp_path / "wrong")):
            pass
    assert "s3cret" not in str(caught.value)


async def test_a_user_with_the_shipped_rights_is_enough_and_with_fewer_is_refused(
    start_redis: StartRedis, tmp_path: Path
) -> None:
    text = (Path(__file__).parents[2] / "deploy" / "redis" / "users.acl").read_text()
    (rule,) = re.findall(r"user streamtrain on #\w+ (.*)", text)
    server = start_redis("--user", "trainer", "on", ">s3cret", *rule.split())
    (tmp_path / "password").write_text("s3cret\n")
    url, password_file = f"redis://trainer@127.0.0.1:{server.port}/1", str(tmp_path / "password")
    log, oracle = log_of(2)
    async with store_at(url, password_file=password_file) as store:
        await StoreApplier(log, store).catch_up(2)
        assert await held_by(store, log, 2) == oracle.rows
    server.cli("ACL", "SETUSER", "trainer", "-hset")
    with pytest.raises(StoreRefused, match=r"(forbids|refused).*docs/store\.md"):
        async with store_at(url, model_id="another-model", password_file=password_file):
            pass


async def test_tls_is_spoken_and_the_server_is_checked(start_redis: StartRedis, tmp_path: Path) -> None:
    if missing_programs("openssl"):
        pytest.skip("openssl makes the certificate")
    key, certificate, port = tmp_path / "key.pem", tmp_path / "cert.pem", free_port()
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    command += ["-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=test"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True, timeout=60)
    tls = ["--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    start_redis(*tls, "--tls-auth-clients", "no")
    async with store_at(f"rediss://127.0.0.1:{port}", tls_ca_file=str(certificate)) as store:
        await store.load_base(random_record(0))
        assert await store.applied_epoch() == 0
    with pytest.raises(StoreUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
        async with store_at(f"rediss://127.0.0.1:{port}", retries=0):
            pass


async def test_a_unix_socket_serves_as_well(start_redis: StartRedis, tmp_path: Path) -> None:
    start_redis("--unixsocket", str(tmp_path / "redis.sock"))
    async with store_at(f"unix://{tmp_path / 'redis.sock'}?db=2") as store:
        await store.load_base(random_record(0))
        assert await store.applied_epoch() == 0


async def test_nobody_there_is_unavailable_and_named(redis_server: RedisServer) -> None:
    async with FaultyProxy(redis_server.port) as proxy:
        port = proxy.port
    with pytest.raises(StoreUnavailable, match=rf"127\.0\.0\.1:{port} cannot be reached.*store\.url"):
        async with store_at(f"redis://127.0.0.1:{port}", retries=1):
            pass


async def test_several_servers_that_are_no_cluster_are_refused(redis_server: RedisServer) -> None:
    with pytest.raises(StoreRefused, match="not in cluster mode"):
        async with store_at(f"redis://127.0.0.1:{redis_server.port},127.0.0.1:{redis_server.port}"):
            pass


async def test_a_cluster_is_found_through_any_node_that_lives(redis_cluster: RedisCluster) -> None:
    dead, live, *_ = redis_cluster.nodes
    async with store_at(redis_cluster.url, shards=12) as store:
        await store.load_base(random_record(0))
    # Its slots are uncovered while it is down, and the store says so; a node that is named first need not live.
    await asyncio.to_thread(dead.stop)
    try:
        with pytest.raises(StoreUnavailable):
            async with store_at(f"redis://127.0.0.1:{dead.port},127.0.0.1:{live.port}", shards=12, retries=0):
                pass
    finally:
        await asyncio.to_thread(redis_cluster.start)
    async with store_at(f"redis://127.0.0.1:1,127.0.0.1:{live.port}", shards=12) as store:
        await StoreApplier(log_of(2)[0], store).catch_up(2)


async def test_a_slot_that_moves_between_nodes_takes_its_shard_along(redis_cluster: RedisCluster) -> None:
    log, oracle = log_of(4, rows=90)
    slot = key_slot(b"{model-of-the.0}")
    async with store_at(redis_cluster.url, shards=2, retries=0) as store:
        await StoreApplier(log, store).catch_up(1)
        source = next(n for n in redis_cluster.nodes if n.cli("CLUSTER", "COUNTKEYSINSLOT", str(slot)) != "0")
        target = next(n for n in redis_cluster.nodes if n is not source)
        try:
            start_move(slot, source, target)
            migrate(source, target, "streamtrain:{model-of-the.0}:meta")
            # Keys on both sides: a script on them is refused until all have moved.
            with pytest.raises(StoreUnavailable, match="cluster that is changing"):
                await store.apply(log.read(2))
            migrate(source, target, *(f"streamtrain:{{model-of-the.0}}:rows:{table}" for table in DIMS))
            await store.apply(log.read(2))  # ASK
            finish_move(slot, redis_cluster, target)
            await store.apply(log.read(3))  # MOVED
            await store.apply(log.read(4))
            assert await held_by(store, log, 4) == oracle.rows
        finally:
            redis_cluster.flush()
            finish_move(slot, redis_cluster, source)


def start_move(slot: int, source: RedisServer, target: RedisServer) -> None:
    target.cli("CLUSTER", "SETSLOT", str(slot), "IMPORTING", source.cli("CLUSTER", "MYID"))
    source.cli("CLUSTER", "SETSLOT", str(slot), "MIGRATING", target.cli("CLUSTER", "MYID"))


def migrate(source: RedisServer, target: RedisServer, *keys: str) -> None:
    answer = source.cli("MIGRATE", "127.0.0.1", str(target.port), "", "0", "5000", "KEYS", *keys)
    assert answer == "OK"


def finish_move(slot: int, cluster: RedisCluster, owner: RedisServer) -> None:
    for node in (owner, *(n for n in cluster.nodes if n is not owner)):
        node.cli("CLUSTER", "SETSLOT", str(slot), "NODE", owner.cli("CLUSTER", "MYID"))
