"""The daemon with a bound on a table's memory: rows leave and come back, over a kill, and no bit of any epoch is another."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamtrain import plugins
from streamtrain.config import Job, load_job
from streamtrain.errors import ConfigError
from streamtrain.log.epoch_log import EpochLog
from streamtrain.replay import _compare, _Records, _redo
from streamtrain.samples.decoder import Decoder
from streamtrain.training.learner import Learner
from tests.daemon import Daemon, until

BOUND = 1 << 18
JOB = """
name = "tiers"
seed = 7
[source]
kind = "files"
paths = ["{folder}/samples.jsonl"]
follow = true
chunk_records_max = 100
[schema]
labels = ["click"]
[schema.slots]
user = {{ table = "main" }}
item = {{ table = "main" }}
user_item = {{ kind = "cross", of = ["user", "item"], table = "pairs" }}
recent = {{ kind = "sequence", shares = "item", length_max = 5, pooling = "mean" }}
[tables.main]
dim = 4
memory_bytes_max = {bound}
decay = {{ every_steps = 20, weights = 0.99 }}
{expiry}
admission = {{ kind = "counting_bloom", threshold = 2, expected_ids = 10_000 }}
[tables.pairs]
dim = 4
memory_bytes_max = {bound}
[model]
kind = "mlp"
hidden = [8]
[training]
batch_size = 32
linger_ms = 20
[log]
path = "{folder}/model"
epoch_interval_s = 0.05
[store]
url = "{store}"
"""


def samples(count: int, seed: int) -> str:
    """Users and items by Zipf's law, so that some are always there and most are rare."""
    random = np.random.default_rng(seed)
    users, items = (random.zipf(1.2, count) % 5000 for _ in range(2))
    lines = []
    for user, item in zip(users.tolist(), items.tolist(), strict=True):
        recent = (random.zipf(1.2, 3) % 5000).tolist()
        lines.append(json.dumps({"user": user, "item": item, "recent": recent, "click": (user + item) % 2}))
    return "\n".join(lines) + "\n"


EXPIRY = {
    "lmdb": 'expiry = { after_steps = 60, sweep_steps = 25, rule = "tests.rules:weak_and_rare" }',
    "redis": "expiry = { after_steps = 40, sweep_steps = 25 }",
}


@pytest.fixture(params=["lmdb", pytest.param("redis", marks=pytest.mark.redis)])
def job(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Of two tables with a bound, one with expiry."""
    url = f"lmdb://{tmp_path}/rows"
    if request.param == "redis":
        url = request.getfixturevalue("redis_server").url
    path = tmp_path / "job.toml"
    path.write_text(JOB.format(folder=tmp_path, bound=BOUND, expiry=EXPIRY[request.param], store=url))
    return path


def metric(page: str, name: str) -> float:
    return sum(
        float(value) for value in re.findall(rf"^streamtrain_{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE)
    )


def learned(folder: Path) -> int:
    if not (folder / "model" / "model.json").exists():
        return 0
    log = EpochLog.open(folder / "model")
    head = log.head()
    return 0 if head is None else log.describe(head).samples_total


async def differences_from_a_run_in_memory(job: Job) -> list[Any]:
    """Learns the recorded minibatches of all epochs again in one table that holds every row; what is not the same bits."""
    log = EpochLog.open(job.log.path)
    source: Any = plugins.load("consumers", job.source.kind)(job.source)
    decoder = Decoder(job.sample_schema, codec=job.source.codec)
    source.use_columns(decoder.columns.arrow_schema.names)
    tables = {n: t.model_copy(update={"memory_bytes_max": None}) for n, t in job.tables.items()}
    learner = Learner.warm(job.model_copy(update={"tables": tables}))
    learner.restore([log.read(0)], sequential=source.sequential)
    different = []
    head = log.head()
    assert head is not None and head > 1
    try:
        for epoch in range(1, head + 1):
            expected = log.read(epoch)
            records = await _Records.read(source, decoder, expected)
            _redo(learner, records, expected, lambda _: None)
            equal, parts = _compare(expected, learner.cut())
            if not equal:
                different.append((epoch, parts))
    finally:
        await source.close()
    return different


def test_every_epoch_is_that_of_a_run_in_memory_over_a_kill(job: Path, tmp_path: Path) -> None:
    stream = tmp_path / "samples.jsonl"
    stream.write_text(samples(3000, 0))
    with Daemon(job) as daemon:
        until(lambda: learned(tmp_path) >= 1500, "half of the samples", 60)
        daemon.kill()
    with stream.open("a") as file:
        file.write(samples(3000, 1))
    with Daemon(job) as daemon:
        until(lambda: learned(tmp_path) == 6000, "the rest", 60)
        page = daemon.get("/metrics")[1]
        assert daemon.stop() == 0, daemon.text

    events = re.findall(
        r'^streamtrain_feature_events_total{event="expired_\w+",table="main"} (\S+)$', page, re.MULTILINE
    )
    expired = sum(map(float, events))
    assert expired > 100 and metric(page, "tier_swept_rows_total") > 100
    # What expired is remembered beside the bound until the store has applied it.
    assert metric(page, "table_bytes") + metric(page, "tier_bytes") <= 2 * BOUND + 100 * expired
    assert metric(page, "tier_evicted_rows_total") > 1000 and metric(page, "store_pulled_rows_total") > 100
    for name in ("tier_hits_total", "tier_misses_total", "tier_stalls_total", "tier_stall_seconds_total"):
        assert metric(page, name) > 0
    assert asyncio.run(differences_from_a_run_in_memory(load_job(job, {}))) == []


def test_a_bound_without_a_store_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(JOB.format(folder=tmp_path, bound=BOUND, expiry="", store="memory://"))
    complaint = r"tables\.main\.memory_bytes_max: rows that leave memory have to be somewhere.*lmdb:///PATH"
    with pytest.raises(ConfigError, match=complaint):
        load_job(path, {})
