"""Daemons with hashed tables, in memory and on a real Redis: stopped, started again, replayed, flushed and verified."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamtrain.config import Job
from streamtrain.errors import ConfigError
from streamtrain.identity import check_same_model
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.fold import fold
from streamtrain.log.recovery import recover
from streamtrain.log.rollback import rollback
from streamtrain.log.verify import verify
from streamtrain.replay import replay
from streamtrain.service import Service
from streamtrain.sources import Chunk
from streamtrain.training.learner import Learner
from tests.fakes import ScriptedSource, chunk, job
from tests.servers import RedisServer

# One job with a table of every kind: what costs time here is to compile its dense half, once a daemon.
TABLES: dict[str, dict[str, Any]] = {
    "hash": {"kind": "hash", "dim": 2, "rows": 5},
    "add": {"kind": "multi_hash", "dim": 2, "rows": [3, 2]},
    "concat": {"kind": "multi_hash", "dim": 2, "rows": 3, "hashes": 2, "combine": "concat"},
    "multiply": {"kind": "multi_hash", "dim": 2, "rows": [4, 3], "combine": "multiply"},
}


@pytest.fixture(autouse=True)
def _cold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Learner, "warm_up", lambda self: None)


def job_of(folder: Path, tables: dict[str, dict[str, Any]] = TABLES, url: str = "memory://") -> Job:
    slots = {name: {"field": "user", "table": name} for name in TABLES}
    schema = {"labels": ["click"], "slots": slots}
    return job(folder, schema=schema, tables=tables, model={"kind": "mlp"}, store={"url": url})


async def learned(made: Job, *script: Chunk) -> EpochLog:
    ScriptedSource.script = script
    service = Service(made, until_end=True)
    await asyncio.wait_for(service.run(), 60)
    ScriptedSource.script = ()
    for name in TABLES:
        shown = service._metrics.registry.get_sample_value(
            "streamtrain_table_collided_ratio", {"table": name}
        )
        assert shown is not None and 0 < shown < 1
    return EpochLog.open(made.log.path)


def rows(log: EpochLog) -> dict[str, dict[int, bytes]]:
    """By table and row id, the weights: from the log alone."""
    found: dict[str, dict[int, bytes]] = {name: {} for name in TABLES}
    for record in recover(log):
        for name, table in record.tables.items():
            found[name] |= {id: w.tobytes() for id, w in zip(table.ids.tolist(), table.weights, strict=True)}
            for id in table.tombstones.tolist():
                found[name].pop(id, None)
    return found


async def test_a_model_in_memory_goes_on_from_a_base_and_from_a_rollback(tmp_path: Path) -> None:
    made = job_of(tmp_path)
    log = await learned(made, chunk(0, 8))
    then, epoch = rows(log), log.head() or 0
    fold(tmp_path / "model")
    await learned(made, chunk(8, 40))
    assert rows(log) != then
    rollback(log, epoch)
    assert rows(log) == then
    await learned(made, chunk(48, 16))
    found = await replay(made, log, log.head() or 0)
    assert found.equal and found.samples > 0, found.differences
    assert verify(log.path).ok


@pytest.mark.redis
async def test_rows_come_from_the_store_by_row_id_and_a_store_that_lost_them_is_repaired(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    made = job_of(tmp_path, url=redis_server.url)
    log = await learned(made, chunk(0, 40))
    head = log.head() or 0
    # From here on the tables are empty at first: a row that was not pulled would show in the next epoch.
    await learned(made, chunk(40, 24))
    assert (await replay(made, log, head + 1)).equal
    redis_server.flush()
    head = log.head() or 0
    await learned(made, chunk(64, 16))
    assert (await replay(made, log, head + 1)).equal
    assert verify(log.path).ok
    for name, table in made.tables.items():
        ids = rows(log)[name]
        assert table.hashing is not None and 0 < len(ids) <= table.hashing.rows
        assert all(id & 0xFFFFFFFF < table.hashing.sizes[id >> 32] for id in ids)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda table: table | {"rows": [5, 2]},
            r"tables\.add\.rows: the log has \[3, 2\], the job says \[5, 2\]",
        ),
        (lambda table: table | {"combine": "multiply"}, r"tables\.add\.combine: the log has 'add'"),
        (lambda table: {"dim": 2}, r"tables\.add\.kind: the log has 'multi_hash', the job says 'dynamic'"),
    ],
)
def test_kind_and_sizes_decide_the_bits_of_a_model(
    tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]], text: str
) -> None:
    made, other = job_of(tmp_path), job_of(tmp_path, TABLES | {"add": change(TABLES["add"])})
    check_same_model(made, made.describe(), "model")
    with pytest.raises(ConfigError, match=text):
        check_same_model(other, made.describe(), "model")
