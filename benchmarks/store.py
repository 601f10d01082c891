"""Rows a second that the store applies and pulls, against plain pipelines of HSET and HMGET on the same server.

    python -m benchmarks.store [--url redis://127.0.0.1:6379/9] [--rows 200000] [--json]

Without --url it starts servers of its own: one node, then a Redis Cluster of three. The rows it writes are removed at the end.
The plain pipelines write as many hashes as the store has shards, so that both use all nodes.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster as ClusterClient

from benchmarks.harness import machine, skip_without, tell
from streamtrain.log.record import EpochRecord, TableRows
from streamtrain.store import StoreDescription, StoreSettings, open_store
from streamtrain.store.packing import pack_rows, value_dtype
from tests.servers import RedisCluster, RedisServer

_PIPELINE_COMMANDS = 64
_FIELDS = 64

Client = Redis | ClusterClient


def table_rows(count: int, dim: int, slots: int, seed: int) -> TableRows:
    """Rows of distinct random ids."""
    random = np.random.default_rng(seed)
    ids = np.unique(random.integers(0, 2**64, count + count // 100 + 8, dtype=np.uint64))[:count]
    return TableRows(
        random.permutation(ids),
        random.standard_normal((count, dim), np.float32),
        random.standard_normal((count, slots), np.float32),
        random.integers(1, 100, count, np.uint32),
        random.integers(1, 100, count, np.uint32),
    )


def record(epoch: int, rows: TableRows) -> EpochRecord:
    return EpochRecord(epoch, "", epoch, epoch + 1, 0, 0, {}, {"t": rows}, {}, {})


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    started = time.perf_counter()
    await work()
    return time.perf_counter() - started


async def plain_hset(client: Client, keys: Sequence[str], rows: TableRows) -> None:
    """What one writes without scripts: a field and a value object a row, HSETs of some fields in pipelines."""
    packed = pack_rows(rows, np.arange(len(rows.ids)))
    stride = len(packed) // len(rows.ids)
    pipeline: Any = client.pipeline(transaction=False)
    for queued, first in enumerate(range(0, len(packed), stride * _FIELDS), 1):
        fields: dict[bytes, bytes] = {}
        for at in range(first, min(first + stride * _FIELDS, len(packed)), stride):
            fields[packed[at : at + 8]] = packed[at + 8 : at + stride]
        pipeline.hset(keys[queued % len(keys)], mapping=fields)
        if queued % _PIPELINE_COMMANDS == 0:
            await pipeline.execute()
    await pipeline.execute()


async def plain_hmget(client: Client, keys: Sequence[str], rows: TableRows) -> None:
    """Reads the same rows back into one array, by HMGETs in pipelines."""
    packed = rows.ids.astype("<u8").tobytes()
    dtype = value_dtype(rows.weights.shape[1], rows.slots.shape[1])
    values: list[bytes] = []
    pipeline: Any = client.pipeline(transaction=False)
    for queued, first in enumerate(range(0, len(packed), 8 * _FIELDS), 1):
        fields = [packed[at : at + 8] for at in range(first, min(first + 8 * _FIELDS, len(packed)), 8)]
        pipeline.hmget(keys[queued % len(keys)], fields)
        if queued % _PIPELINE_COMMANDS == 0:
            values += [value for answer in await pipeline.execute() for value in answer]
    values += [value for answer in await pipeline.execute() for value in answer]
    assert len(np.frombuffer(b"".join(values), dtype)) == len(rows.ids)


async def measure(
    url: str, count: int, dim: int, slots: int, rounds: int, *, cluster: bool
) -> dict[str, Any]:
    """Medians over rounds that take turns, so that a noisy machine is noisy for both."""
    settings = StoreSettings(url=url, timeout_s=60.0)
    store = open_store(settings)
    assert store is not None
    model_id = uuid.uuid4().hex
    plain_keys = [f"benchmark:{model_id}:{number}" for number in range(settings.shards)]
    client: Client = ClusterClient.from_url(url) if cluster else Redis.from_url(url)
    times: dict[str, list[float]] = {"applied": [], "hset": [], "pulled": [], "hmget": [], "epoch": []}
    try:
        await store.open(StoreDescription(model_id, {"t": (dim, slots)}, settings.shards))
        await store.load_base(record(0, TableRows.empty(dim, slots)))
        epoch = 0
        for number in range(rounds):
            rows, small = table_rows(count, dim, slots, number), table_rows(2000, dim, slots, number + 2**31)
            epoch += 2
            times["applied"].append(await timed(lambda: store.apply(record(epoch - 1, rows))))  # noqa: B023
            times["hset"].append(await timed(lambda: plain_hset(client, plain_keys, rows)))  # noqa: B023
            times["pulled"].append(await timed(lambda: store.pull("t", rows.ids)))  # noqa: B023
            times["hmget"].append(await timed(lambda: plain_hmget(client, plain_keys, rows)))  # noqa: B023
            times["epoch"].append(await timed(lambda: store.apply(record(epoch, small))))  # noqa: B023
    finally:
        await store.close()
        async for key in client.scan_iter(f"streamtrain:{{{model_id[:12]}.*"):
            await client.unlink(key)
        for key in plain_keys:
            await client.unlink(key)
        await client.aclose()
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    return {
        "rows": count,
        "row_bytes": value_dtype(dim, slots).itemsize,
        "applied_rows_per_s": round(count / medians["applied"]),
        "plain_hset_rows_per_s": round(count / medians["hset"]),
        "applied_ratio": round(medians["hset"] / medians["applied"], 2),
        "pulled_rows_per_s": round(count / medians["pulled"]),
        "plain_hmget_rows_per_s": round(count / medians["hmget"]),
        "pulled_ratio": round(medians["hmget"] / medians["pulled"], 2),
        "epoch_of_2000_rows_ms": round(medians["epoch"] * 1000, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="a Redis that may be written to; its own servers where not named")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=16, help="floats of weights a row")
    parser.add_argument("--slots", type=int, default=16, help="floats of optimizer state a row")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    options = parser.parse_args()

    def run(url: str, *, cluster: bool = False) -> dict[str, Any]:
        size = options.rows, options.dim, options.slots, options.rounds
        return asyncio.run(measure(url, *size, cluster=cluster))

    result: dict[str, Any] = {"machine": machine()}
    if options.url is not None:
        result["named"] = run(options.url)
    else:
        skip_without("redis-server", "redis-cli", as_json=options.json)
        with RedisServer() as node:
            result["one_node"] = run(node.url)
        with RedisCluster(3) as nodes:
            result["cluster_of_3"] = run(nodes.url, cluster=True)
    tell(result, options.json)


if __name__ == "__main__":
    main()
