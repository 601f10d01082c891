"""Records of many samples through a real Kafka topic: killed while it learns, every leaf is learned once."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest

from streamtrain.config import load_job
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.recovery import recover
from streamtrain.samples.decoder import Decoder
from streamtrain.samples.values import table_of
from tests.daemon import Daemon, inspected, streamtrain, until
from tests.servers import KafkaServer

pytestmark = pytest.mark.kafka

_RECORDS = 900

_JOB = """
name = "grouped"
[source]
kind = "kafka"
bootstrap_servers = "{servers}"
topic = "{topic}"
group_id = "{topic}"
codec = "{codec}"
chunk_records_max = 50
[schema]
labels = ["click"]
levels = [{{ name = "user", children = "ads" }}, {{ name = "ad", children = "shown" }}]
[schema.slots]
user = {{ level = "user", table = "main" }}
ad = {{ level = "ad", type = "string", table = "main" }}
id = {{ table = "ledger" }}
[tables.main]
dim = 1
[tables.ledger]
dim = 1
[model]
kind = "linear"
[training]
batch_size = 7
linger_ms = 5
[training.bad_samples]
share_max = 1
dead_letters = {{ kind = "file", path = "{folder}/dead.jsonl" }}
[log]
path = "{folder}/model"
epoch_interval_s = 0.05
[store]
url = "memory://"
"""


def trees() -> list[dict[str, Any]]:
    """Records of 0 to 30 leaves; each leaf has an id of its own, 1 in 50 no label that can be."""
    random, found, leaf = np.random.default_rng(3), [], 0
    for user in range(_RECORDS):
        ads = []
        for _ in range(random.integers(0, 4)):
            shown = []
            for _ in range(random.integers(0, 11)):
                leaf += 1
                shown.append({"id": leaf, "click": 2 if random.random() < 0.02 else int(random.integers(2))})
            ads.append({"ad": f"ad {random.integers(20)}", "shown": shown})
        found.append({"user": user % 37, "ads": ads})
    return found


def payloads(codec: str, records: list[dict[str, Any]], config: Path) -> list[bytes]:
    """One tree a record as JSON, three as Arrow."""
    if codec == "json":
        return [orjson.dumps(record) for record in records]
    schema = Decoder(load_job(config).sample_schema).columns.arrow_schema
    found = []
    for start in range(0, len(records), 3):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as writer:
            writer.write_table(table_of(records[start : start + 3], schema))
        found.append(sink.getvalue().to_pybytes())
    return found


@pytest.mark.parametrize("codec", ["json", "arrow"])
async def test_every_leaf_is_learned_once_over_kills_inside_records(
    kafka: KafkaServer, tmp_path: Path, codec: str
) -> None:
    topic, config, log = f"grouped-{codec}", tmp_path / "job.toml", tmp_path / "model"
    config.write_text(_JOB.format(servers=kafka.bootstrap_servers, topic=topic, codec=codec, folder=tmp_path))
    records = trees()
    leaves = [leaf for tree in records for ad in tree["ads"] for leaf in ad["shown"]]
    good = {leaf["id"] for leaf in leaves if leaf["click"] < 2}
    await kafka.create_topic(topic, 2)
    await kafka.produce(topic, payloads(codec, records, config), batch_bytes=4096)
    for kill in range(1, 4):
        with Daemon(config, "--until-end") as daemon:
            await asyncio.to_thread(
                until,
                lambda daemon=daemon, kill=kill: _learned(log) >= len(good) * kill // 5 or not daemon.running,
                f"kill {kill}",
            )
            daemon.kill()
    with Daemon(config, "--until-end") as daemon:
        assert await asyncio.to_thread(daemon.wait) == 0, daemon.text[-4000:]
    found = await asyncio.to_thread(inspected, log)
    assert (found["samples"], found["bad_samples"]) == (len(good), len(leaves) - len(good))
    assert found["leaves"] == {} and sum(found["positions"].values()) == len(payloads(codec, records, config))
    counts = {}
    for record in recover(EpochLog.open(log)):
        rows = record.tables["ledger"]
        counts |= dict(zip(rows.ids.tolist(), rows.counts.tolist()))
    assert len(counts) == len(good) and set(counts.values()) == {1}
    inside = [line["epoch"] for line in found["lineage"] if line["leaves"] and line["samples"]]
    assert inside, "no epoch ended inside a record, so nothing was shown"
    for command in (("verify", log), ("replay", log, str(inside[0])), ("replay", log, str(inside[0] + 1))):
        ran = await asyncio.to_thread(streamtrain, *command)
        assert ran.returncode == 0, ran.stdout + ran.stderr
    letters = [json.loads(line) for line in (tmp_path / "dead.jsonl").read_text().splitlines()]
    assert {letter["reason"] for letter in letters} == {"label"}


def _learned(log: Path) -> int:
    """Samples committed so far, read as any other process would."""
    if not (log / "model.json").exists():
        return 0
    opened = EpochLog.open(log)
    head = opened.head()
    return 0 if head is None else opened.describe(head).samples_total
