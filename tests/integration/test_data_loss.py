"""Records that were never learned are gone: what the daemon does and says, end to end on a real topic and on files."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Daemon, inspected, learned, streamtrain, until
from tests.servers import KafkaServer

_numbers = itertools.count()

JOB = """
name = "lossy"
[source]
kind = "kafka"
topic = "{topic}"
bootstrap_servers = "{servers}"
metadata_refresh_s = 0.3
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
linger_ms = 20
[log]
path = "{folder}/model"
epoch_interval_s = 0.1
"""
SKIP = {"STREAMTRAIN__SOURCE__ON_DATA_LOSS": "skip"}


def samples(first: int, count: int) -> list[bytes | None]:
    return [json.dumps({"user": i, "click": i % 2}).encode() for i in range(first, first + count)]


@pytest.fixture
def topic() -> str:
    return f"loss-{next(_numbers)}"


def config(folder: Path, kafka: KafkaServer, topic: str) -> Path:
    path = folder / "job.toml"
    path.write_text(JOB.format(folder=folder, topic=topic, servers=kafka.bootstrap_servers))
    return path


def create(kafka: KafkaServer, topic: str, records: list[bytes | None], partitions: int = 1) -> None:
    asyncio.run(kafka.create_topic(topic, partitions))
    for number in range(partitions):
        asyncio.run(kafka.produce(topic, records, partition=number))


def learn(path: Path, *, expect: int = 0, **environment: str) -> str:
    with Daemon(path, "--until-end", **environment) as daemon:
        assert daemon.wait() == expect, daemon.text[-3000:]
        assert "Traceback" not in daemon.text
        return daemon.text


def lost(folder: Path) -> list[tuple[Any, ...]]:
    found = inspected(folder / "model")
    return [(x["partition"], x["from"], x["to"], x["reason"]) for x in found["lost"]]


def replays(folder: Path) -> None:
    """The epoch that begins behind a gap, redone from the source."""
    epoch = inspected(folder / "model")["lost"][-1]["epoch"]
    run = streamtrain("replay", folder / "model", str(epoch))
    assert run.returncode == 0 and "every bit is the same" in run.stdout, run.stdout + run.stderr


@pytest.mark.kafka
def test_retention_that_overran_the_model_stops_it_and_skips_only_when_told_so(
    kafka: KafkaServer, topic: str, tmp_path: Path
) -> None:
    create(kafka, topic, samples(0, 100))
    job = config(tmp_path, kafka, topic)
    learn(job)
    asyncio.run(kafka.produce(topic, samples(100, 100)))
    asyncio.run(kafka.delete_records(topic, 0, 150))
    said = learn(job, expect=1)
    assert f"OffsetOutOfRange: {topic}:0: 50 offsets that were never learned are gone" in said
    assert 'set source.on_data_loss = \\"skip\\"' in said or 'set source.on_data_loss = "skip"' in said
    assert inspected(tmp_path / "model")["samples"] == 100 and lost(tmp_path) == []

    with Daemon(job, **SKIP) as daemon:
        until(lambda: learned(tmp_path / "model") == 150, "what is left to be learned")
        metrics = daemon.get("/metrics")[1]
        assert f'streamtrain_lost_offsets_total{{partition="{topic}:0"}} 50.0' in metrics
        assert 'streamtrain_data_losses_total{reason="retention"} 1.0' in metrics
        assert daemon.stop() == 0
    assert f"records are lost (retention): {topic}:0 stood at 100 and goes on at offset 150" in daemon.text
    assert inspected(tmp_path / "model")["positions"] == {f"{topic}:0": 200}
    assert lost(tmp_path) == [(f"{topic}:0", 100, 150, "retention")]
    text = streamtrain("inspect", tmp_path / "model").stdout
    assert f"{topic}:0: 100 to 150 (retention), before epoch" in text
    replays(tmp_path)
    learn(job, **SKIP)
    assert len(lost(tmp_path)) == 1, "a gap is skipped once"


@pytest.mark.kafka
def test_a_recreated_topic_stops_the_model_and_is_learned_from_its_beginning_when_told_so(
    kafka: KafkaServer, topic: str, tmp_path: Path
) -> None:
    create(kafka, topic, samples(0, 50), partitions=2)
    job = config(tmp_path, kafka, topic)
    learn(job)
    asyncio.run(kafka.delete_topic(topic))
    create(kafka, topic, samples(1000, 80))
    said = learn(job, expect=1)
    assert f"SourceRecreated: topic '{topic}' was deleted and created again (its id was" in said
    learn(job, **SKIP)
    found = inspected(tmp_path / "model")
    assert (found["samples"], found["positions"]) == (180, {f"{topic}:0": 80})
    assert lost(tmp_path) == [
        (f"{topic}:0", 50, 0, "recreated"),
        (f"{topic}:1", 50, None, "recreated"),
    ]
    replays(tmp_path)
    assert streamtrain("verify", tmp_path / "model").returncode == 0
    # The new topic's identity is the model's now: without being told to skip, it goes on.
    asyncio.run(kafka.produce(topic, samples(2000, 20)))
    learn(job)
    assert inspected(tmp_path / "model")["samples"] == 200


@pytest.mark.kafka
def test_a_topic_recreated_while_it_is_learned_from_is_skipped_in_the_running_daemon(
    kafka: KafkaServer, topic: str, tmp_path: Path
) -> None:
    create(kafka, topic, samples(0, 50))
    job = config(tmp_path, kafka, topic)
    with Daemon(job, **SKIP) as daemon:
        until(lambda: learned(tmp_path / "model") == 50, "the old topic to be learned")
        asyncio.run(kafka.delete_topic(topic))
        create(kafka, topic, samples(0, 30))
        until(lambda: learned(tmp_path / "model") == 80 or not daemon.running, "the new topic to be learned")
        assert daemon.stop() == 0
    assert lost(tmp_path) == [(f"{topic}:0", 50, 0, "recreated")]
    replays(tmp_path)


@pytest.mark.kafka
def test_a_shrunk_topic_stops_the_model_and_is_learned_again_when_told_so(
    kafka: KafkaServer, topic: str, tmp_path: Path
) -> None:
    """A topic that lost its newest records keeps its id. Here: the positions of a longer topic, its id not known."""
    create(kafka, topic, samples(0, 100))
    job = config(tmp_path, kafka, topic)
    learn(job)
    _forget_identity(tmp_path / "model")
    asyncio.run(kafka.delete_topic(topic))
    create(kafka, topic, samples(0, 60))
    said = learn(job, expect=1)
    assert f"{topic}:0: the log goes on at offset 100, but the topic ends at 60" in said
    learn(job, **SKIP)
    assert inspected(tmp_path / "model")["samples"] == 160
    assert lost(tmp_path) == [(f"{topic}:0", 100, 0, "shrunk")]


def _forget_identity(path: Path) -> None:
    """Appends a record as a broker that tells no ids would have left it."""
    from dataclasses import replace

    from streamtrain.log.epoch_log import EpochLog

    log = EpochLog.open(path)
    head = log.head()
    assert head is not None
    last = log.read(head)
    empty = {"step_first": last.step_next, "samples": 0, "bad_samples": 0, "spans": type(last.spans)()}
    notes = {k: v for k, v in last.notes.items() if k != "source"}
    with log.lock():
        log.append(replace(last, epoch=head + 1, previous=log.digest(head), tables={}, notes=notes, **empty))


FILES = JOB.replace(
    'kind = "kafka"\ntopic = "{topic}"\nbootstrap_servers = "{servers}"\nmetadata_refresh_s = 0.3',
    'kind = "files"\npaths = ["{folder}/clicks.jsonl"]\nfollow = true',
)


def test_a_file_that_was_truncated_stops_the_model_and_is_read_again_when_told_so(tmp_path: Path) -> None:
    clicks = tmp_path / "clicks.jsonl"
    job = tmp_path / "job.toml"
    job.write_text(FILES.format(folder=tmp_path))
    clicks.write_bytes(b"".join(record + b"\n" for record in samples(0, 100) if record))
    learn(job)
    clicks.write_bytes(b"".join(record + b"\n" for record in samples(0, 30) if record))
    said = learn(job, expect=1)
    assert "SourceRecreated: " in said and "has fewer than the 100 rows that were learned from it" in said
    with Daemon(job, **SKIP) as daemon:
        until(lambda: learned(tmp_path / "model") == 130, "the file to be read again")
        # What logrotate's copytruncate does, while it is followed.
        clicks.write_bytes(b"".join(record + b"\n" for record in samples(0, 7) if record))
        until(lambda: learned(tmp_path / "model") == 137, "the rotated file")
        assert daemon.stop() == 0
    assert lost(tmp_path) == [(str(clicks), 100, 0, "shrunk"), (str(clicks), 30, 0, "shrunk")]
    assert inspected(tmp_path / "model")["positions"] == {str(clicks): 7}
    replays(tmp_path)
