"""The daemon with its rows in Redis and in a Redis Cluster: killed, flushed, cut off; the model stays the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.recovery import recover
from tests.daemon import Daemon, inspected, streamtrain, until
from tests.integration.test_daemon import JOB, config, samples, write
from tests.servers import RedisCluster, RedisServer

pytestmark = pytest.mark.redis

SLOW = {"STREAMTRAIN__LOG__EPOCH_INTERVAL_S": "0.05"}


@pytest.fixture(params=["redis", "cluster"])
def store(request: pytest.FixtureRequest) -> RedisServer | RedisCluster:
    name = {"redis": "redis_server", "cluster": "redis_cluster"}[request.param]
    server: RedisServer | RedisCluster = request.getfixturevalue(name)
    return server


def rows(log: Path) -> dict[int, bytes]:
    """Every row of the model as bytes, by id: from the log alone."""
    found: dict[int, bytes] = {}
    for record in recover(EpochLog.open(log)):
        table = record.tables["main"]
        packed = np.concatenate([table.weights, table.slots], axis=1)
        for id_, row, count, step in zip(
            table.ids.tolist(), packed, table.counts, table.last_steps, strict=True
        ):
            found[id_] = row.tobytes() + count.tobytes() + step.tobytes()
    return found


def spanned(log: Path) -> int:
    """Samples in all spans of the log: what its epochs say that they learned."""
    opened = EpochLog.open(log)
    return sum(int(opened.read(epoch).spans.spans[:, 4].sum()) for epoch in opened.epochs())


def test_a_model_in_the_store_is_the_model_of_the_log_over_kills_and_a_flush(
    store: RedisServer | RedisCluster, tmp_path: Path
) -> None:
    write(tmp_path / "samples.jsonl", samples(1500))
    job = config(tmp_path, follow=True)
    environment = SLOW | {"STREAMTRAIN__STORE__URL": store.url}
    with Daemon(job, **environment) as daemon:
        until(lambda: (tmp_path / "model").exists() and _learned(tmp_path) == 1500, "1500 samples")
        daemon.kill()

    # After a kill the tables are empty, and each row is pulled when a batch names it.
    write(tmp_path / "samples.jsonl", samples(1500, 1500, seed=1), "a")
    with Daemon(job, **environment) as daemon:
        until(lambda: _learned(tmp_path) == 3000, "1500 more")
        assert "streamtrain_store_pulled_rows_total 0.0" not in daemon.get("/metrics")[1]
        store.flush()
        write(tmp_path / "samples.jsonl", samples(1500, 3000, seed=2), "a")
        until(lambda: _learned(tmp_path) == 4500, "what came after the flush")
        assert daemon.stop() == 0, daemon.text

    # The same stream in memory, with the minibatches that the first one recorded, gives the same rows.
    found = inspected(tmp_path / "model")
    assert (found["samples"], spanned(tmp_path / "model")) == (4500, 4500)
    for epoch in (1, found["epoch"] // 2, found["epoch"]):
        replayed = streamtrain("replay", tmp_path / "model", str(epoch))
        assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    assert streamtrain("verify", tmp_path / "model").returncode == 0
    assert len(rows(tmp_path / "model")) == found["tables"]["main"]["rows"]


def _learned(folder: Path) -> int:
    opened = EpochLog.open(folder / "model") if (folder / "model" / "model.json").exists() else None
    head = None if opened is None else opened.head()
    return 0 if opened is None or head is None else opened.describe(head).samples_total


def test_a_start_waits_for_the_store_where_there_is_something_to_lose_and_tells_a_wrong_one_at_once(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    write(tmp_path / "samples.jsonl", samples(200))
    job = config(tmp_path, follow=True, text=JOB.split("[[exports]]")[0])
    url = {"STREAMTRAIN__STORE__URL": redis_server.url}
    redis_server.kill()
    with Daemon(job, **url) as daemon:
        assert daemon.wait() == 1
        assert "StoreUnavailable" in daemon.text and "Traceback" not in daemon.text
    redis_server.start()
    with Daemon(job, **SLOW, **url) as daemon:
        until(lambda: _learned(tmp_path) == 200, "200 samples")
        daemon.kill()

    redis_server.kill()
    write(tmp_path / "samples.jsonl", samples(300, 200, seed=1), "a")
    with Daemon(job, **SLOW, **url) as daemon:
        daemon.until_says("the start waits for the store: the store's Redis at")
        assert daemon.get("/readyz") == (503, '{"ready": false, "phase": "waiting for the store"}')
        redis_server.start()
        until(lambda: _learned(tmp_path) == 500, "300 more")
        daemon.until_says("the store answers, the start goes on")
        assert daemon.stop() == 0, daemon.text

    redis_server.kill()
    with Daemon(job, **url) as daemon:
        daemon.until_says("the start waits for the store")
        assert daemon.stop() == 0, daemon.text
        assert "Traceback" not in daemon.text


def test_the_store_away_for_a_while_costs_no_sample(redis_server: RedisServer, tmp_path: Path) -> None:
    write(tmp_path / "samples.jsonl", samples(500))
    job = config(tmp_path, follow=True, text=JOB.split("[[exports]]")[0])
    with Daemon(job, **SLOW, STREAMTRAIN__STORE__URL=redis_server.url) as daemon:
        until(lambda: _learned(tmp_path) == 500, "500 samples")
        redis_server.kill()
        write(tmp_path / "samples.jsonl", samples(500, 500, seed=1), "a")
        until(lambda: _learned(tmp_path) == 1000, "learning to go on without Redis")
        daemon.until_says("store falls behind the log, training goes on")
        redis_server.start()
        daemon.until_says("store has caught up")
        assert daemon.stop() == 0, daemon.text
