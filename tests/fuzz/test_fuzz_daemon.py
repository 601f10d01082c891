"""Nasty records, and bombs in compressed batches, through the real daemon on a real topic."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from tests.daemon import Daemon, inspected
from tests.fuzz.nasty import KINDS, good
from tests.servers import KafkaServer

JOB = """
name = "fuzzed"
[source]
kind = "kafka"
topic = "{topic}"
bootstrap_servers = "{servers}"
[schema]
labels = ["click"]
event_time = "time_ms"
[schema.slots]
user = {{}}
item = {{ type = "string" }}
pair = {{ kind = "cross", of = ["user", "item"] }}
recent = {{ kind = "sequence", shares = "item", type = "string", length_max = 5, pooling = "mean" }}
age = {{ kind = "bucket", boundaries = [18.0, 30.0, 50.0] }}
price = {{ kind = "dense" }}
[tables.main]
dim = 1
[model]
kind = "linear"
[training.bad_samples]
share_max = 1.0
dead_letters = {{ kind = "file", path = "{folder}/dead.jsonl", value_bytes_max = 100 }}
[log]
path = "{folder}/model"
"""
BOMB_BYTES = 100_000_000


@pytest.mark.kafka
def test_the_daemon_learns_what_is_good_and_keeps_what_is_not(kafka: KafkaServer, tmp_path: Path) -> None:
    rng, topic = random.Random(11), "fuzzed"
    made = [make(rng) for _ in range(20) for _, make in KINDS.values()]
    verdicts = [must for _ in range(20) for must, _ in KINDS.values()]
    # A batch of a few kilobytes that unpacks to a record of 100 MB, between two good ones.
    bomb = good(rng)[:-1] + b" " * BOMB_BYTES + b"}"
    asyncio.run(_produce(kafka, topic, made, [good(rng), bomb, good(rng)]))
    job = tmp_path / "job.toml"
    job.write_text(JOB.format(folder=tmp_path, topic=topic, servers=kafka.bootstrap_servers))
    with Daemon(job, "--until-end") as daemon:
        assert daemon.wait() == 0, daemon.text[-3000:]
    found = inspected(tmp_path / "model")
    learned, read = verdicts.count(True) + 2, len(made) + 3
    assert (found["samples"], found["bad_samples"]) == (learned, read - learned)
    letters = [json.loads(line) for line in (tmp_path / "dead.jsonl").read_text().splitlines()]
    assert {letter["offset"] for letter in letters} == {
        *(offset for offset, must in enumerate(verdicts) if not must),
        len(made) + 1,
    }
    (large,) = [letter for letter in letters if letter["value_bytes"] > BOMB_BYTES]
    assert (large["reason"], large["offset"]) == ("too_large", len(made) + 1)


async def _produce(kafka: KafkaServer, topic: str, records: list[bytes | None], bombs: list[bytes]) -> None:
    await kafka.create_topic(topic, config={"max.message.bytes": "3000000"})
    async with AIOKafkaProducer(
        bootstrap_servers=kafka.bootstrap_servers,
        compression_type="zstd",
        max_request_size=2 * BOMB_BYTES,
        enable_idempotence=True,
    ) as producer:
        for value in (*records, *bombs):
            await producer.send(topic, value, key=b"k" if value is None else None, partition=0)
        await producer.flush()
