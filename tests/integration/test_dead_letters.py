"""Dead letters end to end: a real topic, kill -9 around them, and sinks that take none for a while."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.structs import TopicPartition

from consumers.kafka.dead_letters import TopicSink
from streamtrain.dead_letters.letter import DeadLetter
from streamtrain.dead_letters.settings import DeadLetterTopic
from streamtrain.errors import DeadLettersUnavailable
from streamtrain.kafka_connection import KafkaConnection
from tests.daemon import Daemon, inspected, learned, until
from tests.servers import KafkaServer

_numbers = itertools.count()

JOB = """
name = "wounded"
[source]
{source}
[schema]
labels = ["click"]
[schema.slots]
user = {{}}
[tables.main]
dim = 1
[model]
kind = "linear"
[training]
batch_size = 16
linger_ms = 5
[training.bad_samples]
share_max = 1.0
dead_letters = {letters}
[log]
path = "{folder}/model"
epoch_interval_s = 0.05
"""


@pytest.fixture
def topic() -> str:
    return f"wounded-{next(_numbers)}"


def job(folder: Path, source: str, letters: str) -> Path:
    path = folder / "job.toml"
    path.write_text(JOB.format(folder=folder, source=source, letters=letters))
    return path


def kafka_source(kafka: KafkaServer, topic: str) -> str:
    return f'kind = "kafka"\ntopic = "{topic}"\nbootstrap_servers = "{kafka.bootstrap_servers}"\nchunk_records_max = 50'


def records(count: int, seed: int) -> tuple[list[bytes | None], set[int]]:
    """Samples, and the offsets of those that are none."""
    rng = random.Random(seed)
    nasty = [b"{broken", b"", None, b"\xff\xfe", b'{"user": "x", "click": 1}', b'{"user": 1, "click": 7}']
    made: list[bytes | None] = []
    bad = set()
    for i in range(count):
        if rng.random() < 0.2:
            bad.add(i)
            made.append(rng.choice(nasty))
        else:
            made.append(json.dumps({"user": i % 50, "click": i % 2}).encode())
    return made, bad


async def read_all(kafka: KafkaServer, topic: str) -> list[Any]:
    async with AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap_servers) as consumer:
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        end = (await consumer.end_offsets([partition]))[partition]
        consumer.seek(partition, 0)
        found: list[Any] = []
        while len(found) < end:
            for some in (await consumer.getmany(timeout_ms=500)).values():
                found += some
        return found


def settings(topic: str, **changes: Any) -> DeadLetterTopic:
    return DeadLetterTopic.model_validate({"kind": "kafka", "topic": topic, **changes})


def letter(offset: int, value: bytes | None, key: bytes | None = None, **changes: Any) -> DeadLetter:
    fields = {"time_ms": 5, "reason": "json", "field": None, "message": "no JSON", "value_bytes": 0}
    return DeadLetter("clicks:3", offset, key=key, value=value, **(fields | changes))


@pytest.mark.kafka
async def test_a_letter_in_a_topic_is_the_record_with_kafka_connect_s_headers(
    kafka: KafkaServer, topic: str
) -> None:
    await kafka.create_topic(topic)
    sink = TopicSink(settings(topic), KafkaConnection(bootstrap_servers=kafka.bootstrap_servers), "m")
    await sink.open()
    letters = [
        letter(7, bytes(range(256)), b"\x00key", field="user", reason="type", message="a float"),
        letter(8, None, b"k", time_ms=None),
        letter(9, None),
        letter(10, b"begin", value_bytes=1 << 30),
    ]
    assert await sink.write(letters) == 4
    await sink.close()
    await sink.close()
    first, tombstone, null, cut = await read_all(kafka, topic)
    assert (first.key, first.value) == (b"\x00key", bytes(range(256)))
    assert dict(first.headers) == {
        "__connect.errors.topic": b"clicks",
        "__connect.errors.partition": b"3",
        "__connect.errors.offset": b"7",
        "__connect.errors.connector.name": b"m",
        "__connect.errors.task.id": b"0",
        "__connect.errors.stage": b"VALUE_CONVERTER",
        "__connect.errors.class.name": b"streamtrain.samples.decoder.Decoder",
        "__connect.errors.exception.class.name": b"streamtrain.errors.BadSample",
        "__connect.errors.exception.message": b"field 'user': a float",
        "streamtrain.reason": b"type",
        "streamtrain.field": b"user",
        "streamtrain.timestamp_ms": b"5",
    }
    assert (tombstone.key, tombstone.value) == (b"k", None)
    assert (null.value, dict(null.headers)["streamtrain.value_null"]) == (b"", b"true")
    assert (cut.value, dict(cut.headers)["streamtrain.value_bytes"]) == (b"begin", b"1073741824")


@pytest.mark.kafka
async def test_a_topic_that_takes_no_letters_is_named_with_the_remedy(kafka: KafkaServer, topic: str) -> None:
    connection = KafkaConnection(bootstrap_servers=kafka.bootstrap_servers)
    with pytest.raises(DeadLettersUnavailable, match=f"'{topic}' at .*: the topic does not exist; create it"):
        await TopicSink(settings(topic), connection, "m").open()
    nobody = KafkaConnection(bootstrap_servers="127.0.0.1:1")
    with pytest.raises(DeadLettersUnavailable, match="check the brokers"):
        await TopicSink(settings(topic, timeout_s=2), nobody, "m").open()
    await kafka.create_topic(topic, config={"max.message.bytes": "1000"})
    sink = TopicSink(settings(topic), connection, "m")
    large = letter(1, random.Random(0).randbytes(5000))
    try:
        for _ in range(2):
            with pytest.raises(
                DeadLettersUnavailable, match=r"raise the topic's max\.message\.bytes, or lower"
            ):
                await sink.write([letter(0, b"small"), large])
        await _set(kafka, topic, "max.message.bytes", "100000")
        assert await sink.write([letter(0, b"small"), large]) == 2
    finally:
        await sink.close()
    kept = await read_all(kafka, topic)
    assert {(dict(r.headers)["__connect.errors.offset"], len(r.value)) for r in kept} == {
        (b"0", 5),
        (b"1", 5000),
    }


async def _set(kafka: KafkaServer, topic: str, name: str, value: str) -> None:
    async with kafka.admin() as admin:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {name: value})])


@pytest.mark.kafka
def test_no_letter_is_lost_however_often_the_daemon_is_killed(
    kafka: KafkaServer, topic: str, tmp_path: Path
) -> None:
    made, bad = records(3000, seed=4)
    asyncio.run(kafka.create_topic(topic))
    asyncio.run(kafka.create_topic(f"{topic}-dead"))
    asyncio.run(kafka.produce(topic, made, partition=0))
    path = job(
        tmp_path, kafka_source(kafka, topic), f'{{ kind = "kafka", topic = "{topic}-dead", timeout_s = 60 }}'
    )
    asyncio.run(_killed_three_times(kafka, path, topic))
    with Daemon(path, "--until-end") as daemon:
        assert daemon.wait() == 0, daemon.text[-3000:]
    found = inspected(tmp_path / "model")
    kept = asyncio.run(read_all(kafka, f"{topic}-dead"))
    offsets = {int(dict(record.headers)["__connect.errors.offset"]) for record in kept}
    assert offsets == bad
    assert len(kept) > len(bad), "the kills came before anything was committed"
    assert (found["samples"], found["bad_samples"]) == (3000 - len(bad), len(bad))
    for record in kept:
        original = made[int(dict(record.headers)["__connect.errors.offset"])]
        assert record.value == original and record.key == (b"k" if original is None else None)


async def _killed_three_times(kafka: KafkaServer, path: Path, topic: str) -> None:
    """Each time as soon as letters are there that no epoch covers yet, which the next start has to repeat."""
    for _ in range(3):
        before = await _end(kafka, f"{topic}-dead")
        with Daemon(path, STREAMTRAIN__LOG__EPOCH_INTERVAL_S="3") as daemon:
            async with asyncio.timeout(60):
                while await _end(kafka, f"{topic}-dead") == before:
                    assert daemon.running, daemon.text[-3000:]
            daemon.kill()


async def _end(kafka: KafkaServer, topic: str) -> int:
    async with AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap_servers) as consumer:
        partition = TopicPartition(topic, 0)
        return int((await consumer.end_offsets([partition]))[partition])


@pytest.mark.kafka
def test_training_pauses_while_a_topic_takes_no_letters_and_goes_on_by_itself(
    kafka: KafkaServer, topic: str, tmp_path: Path
) -> None:
    dead = f"{topic}-dead"
    asyncio.run(kafka.create_topic(topic))
    asyncio.run(kafka.create_topic(dead, config={"max.message.bytes": "1000"}))
    good = [json.dumps({"user": 1, "click": 1}).encode()] * 10
    asyncio.run(kafka.produce(topic, good, partition=0))
    path = job(tmp_path, kafka_source(kafka, topic), f'{{ kind = "kafka", topic = "{dead}" }}')
    with Daemon(path) as daemon:
        until(lambda: learned(tmp_path / "model") == 10, "the good samples")
        large = random.Random(1).randbytes(5000)
        asyncio.run(kafka.produce(topic, [large, *good], partition=0))
        daemon.until_says("training pauses: dead letters cannot be sent to topic")
        assert "streamtrain_dead_letters_unavailable 1.0" in daemon.get("/metrics")[1]
        assert inspected(tmp_path / "model")["positions"] == {f"{topic}:0": 10}
        asyncio.run(_set(kafka, dead, "max.message.bytes", "100000"))
        daemon.until_says("dead letters are kept again")
        until(lambda: learned(tmp_path / "model") == 20, "what came behind the bad record")
        metrics = daemon.get("/metrics")[1]
        assert "streamtrain_dead_letters_unavailable 0.0" in metrics
        assert "streamtrain_dead_letters_total 1.0" in metrics
        assert daemon.stop() == 0
    (kept,) = asyncio.run(read_all(kafka, dead))
    assert kept.value == large


def test_letters_in_a_file_survive_kills_and_are_told_apart_by_offset(tmp_path: Path) -> None:
    made, bad = records(2000, seed=9)
    lines = [b"" if r is None else r for r in made]
    # A blank line is no record at all.
    bad = {i for i in bad if lines[i]}
    clicks, dead = tmp_path / "clicks.jsonl", tmp_path / "dead" / "letters.jsonl"
    clicks.write_bytes(b"".join(line + b"\n" for line in lines))
    source = f'kind = "files"\npaths = ["{clicks}"]\nchunk_records_max = 20'
    path = job(
        tmp_path, source, f'{{ kind = "file", path = "{dead}", rotate_bytes = 20000, files_max = 1000 }}'
    )
    for _ in range(2):
        size = _size(dead)
        with Daemon(path, "--until-end", STREAMTRAIN__LOG__EPOCH_INTERVAL_S="0.3") as daemon:
            until(lambda: _size(dead) > size or not daemon.running, "more letters")  # noqa: B023
            daemon.kill()
    # What a kill in the middle of a write leaves.
    with dead.open("ab") as file:
        file.write(b'{"partition": "torn')
    with Daemon(path, "--until-end") as daemon:
        assert daemon.wait() == 0, daemon.text[-3000:]
    kept = [json.loads(line) for file in dead.parent.iterdir() for line in file.read_bytes().splitlines()]
    assert {letter["offset"] for letter in kept} == bad
    assert all(base64.b64decode(letter["value_base64"]) == lines[letter["offset"]] for letter in kept)
    found = inspected(tmp_path / "model")
    assert (found["samples"], found["bad_samples"]) == (len([x for x in lines if x]) - len(bad), len(bad))


def _size(dead: Path) -> int:
    return sum(file.stat().st_size for file in dead.parent.iterdir()) if dead.parent.exists() else 0


def test_a_device_without_room_pauses_training_and_a_stop_is_still_clean(tmp_path: Path) -> None:
    clicks = tmp_path / "clicks.jsonl"
    good = json.dumps({"user": 1, "click": 1}).encode() + b"\n"
    clicks.write_bytes(good * 20)
    source = f'kind = "files"\npaths = ["{clicks}"]\nfollow = true'
    with Daemon(job(tmp_path, source, '{ kind = "file", path = "/dev/full" }')) as daemon:
        until(lambda: learned(tmp_path / "model") == 20, "the good samples")
        with clicks.open("ab") as file:
            file.write(b"{broken\n" + good)
        daemon.until_says(
            "training pauses: dead letters cannot be written to /dev/full: No space left on device"
        )
        assert daemon.stop() == 0
    found = inspected(tmp_path / "model")
    assert (found["samples"], found["positions"]) == (20, {str(clicks): 20})


@pytest.mark.kafka
def test_dead_letters_that_cannot_be_kept_are_told_before_anything_is_learned(
    kafka: KafkaServer, topic: str, tmp_path: Path
) -> None:
    asyncio.run(kafka.create_topic(topic))
    path = job(tmp_path, kafka_source(kafka, topic), '{ kind = "kafka", topic = "nowhere" }')
    with Daemon(path, "--until-end") as daemon:
        assert daemon.wait() == 1
    assert "DeadLettersUnavailable: dead letters cannot be sent to topic 'nowhere'" in daemon.text
    assert "--create --topic nowhere" in daemon.text and "Traceback" not in daemon.text
