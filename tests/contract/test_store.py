"""The contract of a `Store`, on one Redis, on a Redis Cluster and in a directory, against dicts."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamtrain.errors import StoreBehind, StoreRefused, StoreUnavailable
from streamtrain.sparse.turns import tickets_of
from streamtrain.store import Store, StoreDescription, StoreSettings, open_store
from streamtrain.store.store import Unused
from tests.reference_store import DIMS, DictRows, as_dict, random_record, record_of, rows_of
from tests.servers import LmdbFolder, RedisCluster, RedisServer

SHARDS = 5

Server = RedisServer | RedisCluster | LmdbFolder
Opener = Callable[..., Awaitable[Store]]

REDIS = [pytest.param(name, marks=pytest.mark.redis) for name in ("redis", "cluster")]
# What only a store that several processes share, or that is a Redis, can show.
redis_only = pytest.mark.parametrize("server", REDIS, indirect=True)


@pytest.fixture(params=[*REDIS, "lmdb"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Server:
    if request.param == "lmdb":
        return LmdbFolder(tmp_path / "store")
    return request.getfixturevalue("redis_server" if request.param == "redis" else "redis_cluster")


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows a call, so that an epoch takes many."""
    monkeypatch.setattr("streamtrain.store.shares.ROWS_MAX", 4)


@pytest.fixture
async def opened(server: Server) -> AsyncIterator[Opener]:
    """Opens stores of one model, or of another when told; closes them."""
    stores: list[Store] = []

    async def open_one(
        model_id: str = "model-of-the-test",
        shards: int = SHARDS,
        scanned: frozenset[str] = frozenset({"items"}),
        **options: object,
    ) -> Store:
        store = open_store(StoreSettings(url=server.url, **options))  # type: ignore[arg-type]
        assert store is not None
        stores.append(store)
        await store.open(StoreDescription(model_id, DIMS, shards, scanned))
        return store

    yield open_one
    for store in stores:
        await store.close()


async def contents(
    store: Store, ids: list[int], epoch_min: int = 0
) -> dict[str, dict[int, tuple[bytes, ...]]]:
    """Everything that the store has of `ids`."""
    held = {}
    for table in DIMS:
        found, rows = await store.pull(table, np.array(ids, np.uint64), epoch_min)
        assert np.array_equal(rows.ids, np.array(ids, np.uint64)[found])
        held[table] = as_dict(rows)
    return held


def ids_of(*records: object) -> list[int]:
    ids: set[int] = set()
    for record in records:
        for rows in record.tables.values():  # type: ignore[attr-defined]
            ids |= {*rows.ids.tolist(), *rows.tombstones.tolist()}
    return sorted(ids)


async def test_an_empty_store_holds_nothing_and_answers_no_pull(opened: Opener) -> None:
    store = await opened()
    assert await store.applied_epoch() is None
    assert await store.applied_epochs() == dict.fromkeys(range(SHARDS))
    with pytest.raises(StoreBehind, match="holds nothing"):
        await store.pull("items", np.arange(3, dtype=np.uint64))
    with pytest.raises(StoreBehind):
        await store.apply(random_record(1))


async def test_epochs_are_held_bit_by_bit(opened: Opener) -> None:
    store, oracle = await opened(), DictRows()
    records = [random_record(epoch, rows=200) for epoch in range(4)]
    await store.load_base(records[0])
    for record in records[1:]:
        await store.apply(record)
    for record in records:
        oracle.write(record)
    assert await store.applied_epochs() == dict.fromkeys(range(SHARDS), 3)
    assert await contents(store, ids_of(*records), epoch_min=3) == oracle.rows


async def test_the_ends_of_the_id_space_are_ids_like_others(opened: Opener) -> None:
    store = await opened()
    ids = [0, 1, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1]
    rows = rows_of(ids, *DIMS["items"])
    await store.load_base(record_of(0, {"items": rows}))
    found, pulled = await store.pull("items", np.array(ids[::-1], np.uint64))
    assert found.all() and as_dict(pulled) == as_dict(rows)


async def test_pull_answers_in_the_order_asked_with_repeats_and_unknown_ids(opened: Opener) -> None:
    store = await opened()
    rows = rows_of([10, 20, 30], *DIMS["users"])
    await store.load_base(record_of(0, {"users": rows}))
    found, pulled = await store.pull("users", np.array([30, 7, 10, 30, 2**64 - 5], np.uint64))
    assert found.tolist() == [True, False, True, True, False]
    assert pulled.ids.tolist() == [30, 10, 30]
    assert np.array_equal(pulled.weights, rows.weights[[2, 0, 2]])
    assert (
        pulled.weights.dtype == np.float32
        and pulled.counts.dtype == np.uint32
        and pulled.slots.shape == (3, 0)
    )
    found, pulled = await store.pull("items", np.empty(0, np.uint64))
    assert found.shape == (0,) and pulled.weights.shape == (0, 3)


async def test_more_rows_than_a_call_takes_go_in_several(opened: Opener) -> None:
    store = await opened(shards=2)
    rows = rows_of(list(range(20_000)), *DIMS["items"])
    await store.load_base(record_of(0, {"items": rows}))
    await store.apply(
        record_of(1, {"items": rows_of([5], *DIMS["items"], tombstones=[*range(9_000, 20_000)])})
    )
    found, _ = await store.pull("items", rows.ids)
    assert np.array_equal(found, rows.ids < 9_000)


def in_tickets(rows: dict[int, tuple[bytes, ...]], first: int, end: int) -> dict[int, tuple[bytes, ...]]:
    return {
        id_: row for id_, row in rows.items() if first <= int(tickets_of(np.array([id_], np.uint64))[0]) < end
    }


async def test_a_scan_answers_what_lies_in_a_part_of_the_tags_whatever_was_applied(
    opened: Opener, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamtrain.store.redis_store.ROWS_MAX", 7)
    monkeypatch.setattr("streamtrain.store.lmdb_rows._SCANNED_MAX", 7)
    store, oracle = await opened(), DictRows()
    await store.load_base(random_record(0, rows=150))
    oracle.write(random_record(0, rows=150))
    for epoch in range(1, 5):
        await store.apply(random_record(epoch, rows=40))
        oracle.write(random_record(epoch, rows=40))
        for tickets in [(0, 2**32), (0, 2**30), (2**30, 2**32 - 1), (2**31, 2**31), (2**32 - 2**28, 2**32)]:
            rows = await store.scan("items", tickets, None, epoch)
            assert len(np.unique(rows.ids)) == len(rows.ids)
            assert as_dict(rows) == in_tickets(oracle.rows["items"], *tickets)
    with pytest.raises(StoreBehind, match="epoch 4, needed is epoch 5"):
        await store.scan("items", (0, 2**32), None, 5)


async def test_a_scan_leaves_out_what_was_used_lately_with_steps_modulo_2_to_the_32(opened: Opener) -> None:
    store = await opened()
    rows = rows_of(range(1, 6), *DIMS["items"])
    rows.last_steps[:] = [95, 89, 90, 2**32 - 5, 2**31 + 5]
    await store.load_base(record_of(0, {"items": rows}))
    for unused, ids in [
        (Unused(100, 10), [2, 4, 5]),
        (Unused(2, 6), [1, 2, 3, 4, 5]),
        (Unused(2, 7), [1, 2, 3, 5]),
    ]:
        found = await store.scan("items", (0, 2**32), unused, 0)
        assert sorted(found.ids.tolist()) == ids


async def test_ids_of_one_tag_are_all_found_however_few_a_call_takes(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamtrain.store.redis_store.ROWS_MAX", 2)
    monkeypatch.setattr("streamtrain.store.lmdb_rows._SCANNED_MAX", 2)
    store = await opened()
    # The tag is the upper half of a product; these are what the products come from.
    products = (np.uint64(77) << np.uint64(32)) | np.arange(1, 9, dtype=np.uint64)
    mixed = products * np.uint64(pow(0x9E3779B97F4A7C15, -1, 2**64))
    ids = mixed ^ (mixed >> np.uint64(32))
    assert np.unique(tickets_of(ids)).tolist() == [77]
    await store.load_base(record_of(0, {"items": rows_of([*ids.tolist(), 5], *DIMS["items"])}))
    assert sorted((await store.scan("items", (77, 78), None, 0)).ids.tolist()) == sorted(ids.tolist())
    assert not len((await store.scan("items", (78, 79), None, 0)).ids)


@redis_only
async def test_an_order_that_lost_ids_is_noticed_and_repaired(
    opened: Opener, server: RedisServer | RedisCluster
) -> None:
    store, base = await opened(), random_record(0, rows=100)
    await store.load_base(base)
    nodes = [server] if isinstance(server, RedisServer) else server.nodes
    node = next(node for node in nodes if node.cli("KEYS", "*:order"))
    key = node.cli("KEYS", "*:order").splitlines()[0]
    shard = int(key.split(".")[1].split("}")[0])
    node.cli("DEL", key)
    with pytest.raises(StoreBehind, match=f"shard {shard}"):
        await store.scan("items", (0, 2**32), None, 0)
    assert (await store.applied_epochs())[shard] is None
    await store.load_base(base)
    assert as_dict(await store.scan("items", (0, 2**32), None, 0)) == as_dict(base.tables["items"])


@redis_only
async def test_a_store_that_was_filled_without_an_order_is_filled_again_where_one_is_needed(
    opened: Opener,
) -> None:
    base = random_record(0, rows=100)
    for scanned in (frozenset[str](), frozenset({"items"}), frozenset[str](), frozenset({"items"})):
        store = await opened(scanned=scanned)
        assert await store.applied_epoch() is None
        await store.load_base(base)
        await (again := await opened(scanned=scanned)).close()
        assert again is not store and await store.applied_epoch() == 0
    assert as_dict(await store.scan("items", (0, 2**32), None, 0)) == as_dict(base.tables["items"])


@pytest.mark.parametrize("server", REDIS[:1], indirect=True)
async def test_a_store_whose_order_is_that_of_an_older_version_is_filled_again(
    opened: Opener, server: RedisServer
) -> None:
    store = await opened(shards=1)
    await store.load_base(random_record(3))
    assert await store.applied_epoch() == 3
    # As versions left it that ordered ids by their tags: the names of the tables alone.
    meta = server.cli("KEYS", "*:meta")
    assert server.cli("HGET", meta, "scanned") == "tickets:items"
    server.cli("HSET", meta, "scanned", "items")
    assert await (await opened(shards=1)).applied_epoch() is None


async def test_applying_twice_is_applying_once(opened: Opener) -> None:
    store, oracle = await opened(), DictRows()
    first, second, third = (random_record(epoch) for epoch in range(3))
    await store.load_base(first)
    for record in (second, second, third, second, third):
        await store.apply(record)
    for record in (first, second, third):
        oracle.write(record)
    assert await contents(store, ids_of(first, second, third)) == oracle.rows
    assert await store.applied_epoch() == 2


async def test_a_gap_is_refused_and_changes_nothing(opened: Opener) -> None:
    store, oracle = await opened(), DictRows()
    base, skipped, later = (random_record(epoch) for epoch in range(3))
    await store.load_base(base)
    with pytest.raises(StoreBehind, match="applied epoch 0, needed is epoch 1"):
        await store.apply(later)
    oracle.write(base)
    assert await contents(store, ids_of(base, skipped, later)) == oracle.rows


@redis_only
async def test_a_stale_writer_moves_nothing_backwards(opened: Opener) -> None:
    store, stale, oracle = await opened(), await opened(), DictRows()
    records = [random_record(epoch) for epoch in range(4)]
    await store.load_base(records[0])
    for record in records[1:]:
        await store.apply(record)
    await stale.load_base(records[0])
    await stale.apply(records[1])
    for record in records:
        oracle.write(record)
    assert await store.applied_epochs() == dict.fromkeys(range(SHARDS), 3)
    assert await contents(store, ids_of(*records)) == oracle.rows


async def test_a_base_replaces_what_is_behind_it(opened: Opener) -> None:
    store, oracle = await opened(), DictRows()
    old, base = random_record(0, seed=1), random_record(9, seed=2)
    await store.load_base(old)
    await store.load_base(base)
    oracle.write(base)
    assert await contents(store, ids_of(old, base), epoch_min=9) == oracle.rows


@redis_only
async def test_two_appliers_of_one_log_leave_what_one_leaves(opened: Opener, small_parts: None) -> None:
    stores, oracle = [await opened(), await opened()], DictRows()
    records = [random_record(epoch) for epoch in range(6)]

    async def persist(call: Callable[[], Awaitable[None]]) -> None:
        for _ in range(20):
            try:
                return await call()
            except StoreUnavailable:
                # Overtaken too often; the applier tries again too.
                continue
        raise AssertionError("two appliers keep each other from finishing")

    async def follow(store: Store) -> None:
        await persist(lambda: store.load_base(records[0]))
        for record in records[1:]:
            await persist(lambda record=record: store.apply(record))  # type: ignore[misc]

    await asyncio.gather(*map(follow, stores))
    for record in records:
        oracle.write(record)
    assert await contents(stores[0], ids_of(*records), epoch_min=5) == oracle.rows


async def test_pull_refuses_a_shard_that_has_not_reached_the_epoch(opened: Opener) -> None:
    store = await opened()
    await store.load_base(random_record(4))
    with pytest.raises(StoreBehind, match="epoch 4, needed is epoch 5"):
        await store.pull("items", np.array([1], np.uint64), epoch_min=5)


@redis_only
async def test_scripts_come_back_after_the_server_forgot_them(opened: Opener, server: Server) -> None:
    store = await opened()
    await store.load_base(random_record(0))
    for node in [server] if isinstance(server, RedisServer) else server.nodes:
        node.cli("SCRIPT", "FLUSH")
    await store.apply(random_record(1))
    assert await store.applied_epoch() == 1


async def test_another_models_rows_are_refused_by_name(opened: Opener) -> None:
    await (await opened("0123456789ab-first")).close()
    with pytest.raises(StoreRefused, match=r"model '0123456789ab-first'.*(redis-cli --scan|rm -r)"):
        await opened("0123456789ab-second")


async def test_models_with_other_ids_live_side_by_side(opened: Opener) -> None:
    one, other = await opened("one-model-here"), await opened("other-model-here")
    await one.load_base(record_of(3, {"items": rows_of([1], 3, 3)}))
    await other.load_base(record_of(5, {"items": rows_of([2], 3, 3)}))
    assert (await one.applied_epoch(), await other.applied_epoch()) == (3, 5)
    found, _ = await one.pull("items", np.array([1, 2], np.uint64))
    assert found.tolist() == [True, False]


async def test_another_number_of_shards_is_refused(opened: Opener) -> None:
    await (await opened(shards=4)).close()
    with pytest.raises(StoreRefused, match='"shards": 4'):
        await opened(shards=8)


async def test_a_record_of_another_schema_is_refused(opened: Opener) -> None:
    store = await opened()
    with pytest.raises(StoreRefused, match="table 'items' with 4 weights"):
        await store.load_base(record_of(0, {"items": rows_of([1], 4, 3)}))


async def test_a_flushed_store_holds_nothing_and_is_repaired(opened: Opener, server: Server) -> None:
    store, oracle = await opened(), DictRows()
    await store.load_base(random_record(0))
    server.flush()
    assert await store.applied_epoch() is None
    with pytest.raises(StoreBehind):
        await store.apply(random_record(1))
    await store.load_base(random_record(7))
    oracle.write(random_record(7))
    assert await contents(store, ids_of(random_record(0), random_record(7))) == oracle.rows


@redis_only
async def test_rows_removed_by_another_hand_are_noticed_and_repaired(opened: Opener, server: Server) -> None:
    store, base = await opened(), random_record(0, rows=100)
    await store.load_base(base)
    node = next(
        n for n in ([server] if isinstance(server, RedisServer) else server.nodes) if n.cli("KEYS", "*rows*")
    )
    key = next(key for key in node.cli("KEYS", "*:rows:items").splitlines())
    shard = int(key.split(".")[1].split("}")[0])
    node.cli("DEL", key)
    assert (await store.applied_epochs()) == dict.fromkeys(range(SHARDS), 0) | {shard: None}
    with pytest.raises(StoreBehind, match=f"shard {shard}"):
        await store.pull("items", base.tables["items"].ids)
    await store.load_base(base)
    found, _ = await store.pull("items", base.tables["items"].ids)
    assert found.all()


@redis_only
async def test_a_value_of_another_size_is_never_read_as_a_row(opened: Opener, server: Server) -> None:
    store = await opened(shards=1)
    await store.load_base(record_of(0, {"users": rows_of([0x4142434445464748], *DIMS["users"])}))
    for node in [server] if isinstance(server, RedisServer) else server.nodes:
        if key := node.cli("KEYS", "*:rows:users"):
            node.cli("HSET", key, "HGFEDCBA", "short")
    with pytest.raises(StoreRefused, match="value of 5 bytes where a row of table 'users' has 12"):
        await store.pull("users", np.array([0x4142434445464748], np.uint64))


async def test_cancelled_pulls_leave_the_store_usable_with_the_right_answers(opened: Opener) -> None:
    store = await opened(connections_max=2)
    rows = rows_of(list(range(3000)), *DIMS["items"])
    await store.load_base(record_of(0, {"items": rows}))
    expected = as_dict(rows)
    for yields in range(12):
        pull = asyncio.create_task(store.pull("items", rows.ids))
        for _ in range(yields):
            await asyncio.sleep(0)
        pull.cancel()
        await asyncio.gather(pull, return_exceptions=True)
        some = rows.ids[yields * 100 : yields * 100 + 50]
        found, pulled = await store.pull("items", some)
        assert found.all() and as_dict(pulled) == {int(i): expected[int(i)] for i in some}


async def test_info_sums_up_the_servers(opened: Opener, server: Server) -> None:
    info = await (await opened()).info()
    assert info.servers == (3 if isinstance(server, RedisCluster) else 1)
    assert info.memory_bytes > 0 and info.version.count(".") == 2
    assert info.memory_bytes_max == (1 << 36 if isinstance(server, LmdbFolder) else 0)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.lists(st.integers(0, 4), min_size=1, max_size=12),
    seed=st.integers(0, 1000),
    shards=st.integers(1, 7),
)
def test_any_order_of_applying_holds_a_prefix_of_the_epochs(
    server: Server, small_parts: None, order: list[int], seed: int, shards: int
) -> None:
    records = [random_record(epoch, 12, seed, id_max=40) for epoch in range(5)]

    async def scenario() -> None:
        store = open_store(StoreSettings(url=server.url))
        assert store is not None
        await store.open(StoreDescription(uuid.uuid4().hex, DIMS, shards))
        try:
            await store.load_base(records[0])
            applied = 0
            for epoch in order:
                if epoch > applied + 1:
                    with pytest.raises(StoreBehind):
                        await store.apply(records[epoch])
                else:
                    await store.apply(records[epoch])
                    applied = max(applied, epoch)
            oracle = DictRows()
            for record in itertools.islice(records, applied + 1):
                oracle.write(record)
            assert await store.applied_epochs() == dict.fromkeys(range(shards), applied)
            assert await contents(store, ids_of(*records), applied) == oracle.rows
        finally:
            await store.close()

    asyncio.run(scenario())
