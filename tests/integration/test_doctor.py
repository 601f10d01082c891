"""`streamtrain doctor` against real servers: what is broken on purpose is found, with the command that mends it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamtrain.config import Job, parse_job
from streamtrain.doctor import examine
from streamtrain.findings import Finding, Level
from streamtrain.service import Service
from tests.fakes import SCHEMA
from tests.servers import KafkaServer, RedisCluster, RedisServer, free_port


def patient(folder: Path, **sections: Any) -> Job:
    data: dict[str, Any] = {
        "name": "patient",
        "source": {"kind": "files", "paths": [str(folder / "none.jsonl")]},
        "schema": SCHEMA,
        "tables": {"main": {"dim": 1}},
        "model": {"kind": "linear"},
        "training": {"batch_size": 8, "linger_ms": 1},
        "log": {"path": str(folder / "model"), "epoch_interval_s": 0.05},
        "http": {"enabled": False},
    }
    return parse_job(data | sections, "test")


def found(folder: Path, area: str, **sections: Any) -> list[Finding]:
    """What the doctor says of one area."""
    return [f for f in asyncio.run(examine(patient(folder, **sections))) if f.area == area]


def kafka_source(server: KafkaServer, topic: str, **settings: Any) -> dict[str, Any]:
    return {"kind": "kafka", "bootstrap_servers": server.bootstrap_servers, "topic": topic} | settings


@pytest.mark.kafka
def test_kafka_that_is_away_and_topics_that_are_missing_or_compacted(
    kafka: KafkaServer, tmp_path: Path
) -> None:
    nowhere = {"kind": "kafka", "bootstrap_servers": f"127.0.0.1:{free_port()}", "topic": "t"}
    _, away = found(tmp_path, "source", source=nowhere)
    assert away.level is Level.FAULT and "ConnectionRefusedError" in away.text and "nc -vz" in away.remedy

    _, missing = found(tmp_path, "source", source=kafka_source(kafka, "doctor-none"))
    assert missing.level is Level.FAULT and "kafka-topics.sh" in missing.remedy
    assert "--create --topic doctor-none" in missing.remedy

    asyncio.run(kafka.create_topic("doctor-compact", 2, {"cleanup.policy": "compact"}))
    answers, held, compact, _ = found(tmp_path, "source", source=kafka_source(kafka, "doctor-compact"))[1:]
    assert "has 2 partitions" in answers.text and "the topic holds 0 offsets" in held.text
    assert compact.level is Level.WARNING and "--add-config cleanup.policy=delete" in compact.remedy


@pytest.mark.kafka
def test_records_that_retention_took_or_may_soon_take_are_told_before_the_daemon_meets_it(
    kafka: KafkaServer, tmp_path: Path
) -> None:
    topic = "doctor-retention"
    sample = json.dumps({"user": 1, "click": 1}).encode()
    hour = {"retention.ms": "3600000", "message.timestamp.type": "CreateTime"}
    asyncio.run(kafka.create_topic(topic, 1, hour))
    # Forty minutes old: more than half of the hour is over.
    old_ms = int((time.time() - 2400) * 1000)
    asyncio.run(kafka.produce(topic, [sample] * 3, timestamp_ms=old_ms))
    asyncio.run(kafka.create_topic("doctor-dead"))
    letters = {"kind": "kafka", "topic": "doctor-dead"}
    sections = {
        "source": kafka_source(kafka, topic, group_id="doctor"),
        "training": {"batch_size": 8, "linger_ms": 1, "bad_samples": {"dead_letters": letters}},
    }
    learned = asyncio.run(Service(patient(tmp_path, **sections), until_end=True).run())
    assert learned is not None and learned.samples_total == 3
    kept, well = (found(tmp_path, area, **sections) for area in ("dead letters", "source"))
    assert [f.level for f in (*kept, *well)] == [Level.OK] * 6
    texts = " ".join(f.text for f in (*kept, *well))
    assert "all that the log needs next is there; 0 offsets behind" in texts
    assert "more than half of it left" in texts and "group 'doctor' may be used" in texts
    assert "topic 'doctor-dead' is there, and may be written to" in texts

    # One more of those, and one that is new.
    asyncio.run(kafka.produce(topic, [sample], timestamp_ms=old_ms))
    asyncio.run(kafka.produce(topic, [sample]))
    late = found(tmp_path, "source", **sections)
    (warned,) = [f for f in late if f.level is Level.WARNING]
    assert "what comes next in partition 0 has waited for more than half of it" in warned.text
    assert "retention.ms=7200000" in warned.remedy and any("2 offsets behind" in f.text for f in late)

    asyncio.run(kafka.delete_records(topic, 0, 4))
    (gone,) = [f for f in found(tmp_path, "source", **sections) if f.level is Level.FAULT]
    assert "Lost records" in gone.remedy


def test_redis_is_judged_by_policy_memory_persistence_and_rights(
    start_redis: Callable[..., RedisServer], tmp_path: Path
) -> None:
    server = start_redis("--maxmemory", "100mb", "--appendonly", "yes")
    levels = [f.level for f in found(tmp_path, "store", store={"url": server.url})]
    assert levels == [Level.OK] * 3 and server.cli("DBSIZE") == "0"

    server.cli("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    (policy, *_) = found(tmp_path, "store", store={"url": server.url})
    assert policy.level is Level.FAULT and "CONFIG SET maxmemory-policy noeviction" in policy.text
    server.cli("CONFIG", "SET", "maxmemory-policy", "noeviction")

    password = tmp_path / "password"
    password.write_text("secret-of-doctor")
    rights = "resetchannels ~streamtrain:* -@all +info +select +client|setname +evalsha +eval +hget +hmget +hlen +zcard +del"
    server.cli("ACL", "SETUSER", "meek", "on", ">secret-of-doctor", *rights.split())
    url = server.url.replace("redis://", "redis://meek@")
    *_, lacking, _ = found(tmp_path, "store", store={"url": url, "password_file": str(password)})
    assert lacking.level is Level.FAULT and "HDEL, HSET, UNLINK, ZADD, ZRANGEBYLEX, ZREM" in lacking.text
    password.write_text("wrong-one")
    (refused,) = found(tmp_path, "store", store={"url": url, "password_file": str(password)})
    assert refused.level is Level.FAULT and "wrong-one" not in refused.text

    server.stop()
    (away,) = found(tmp_path, "store", store={"url": server.url, "retries": 0})
    assert away.level is Level.FAULT and "cannot be reached" in away.text


def test_every_node_of_a_redis_cluster_is_looked_at(redis_cluster: RedisCluster, tmp_path: Path) -> None:
    store = found(tmp_path, "store", store={"url": redis_cluster.url})
    assert sum("answers, and evicts nothing" in f.text for f in store) == 3
    assert sum("no maxmemory" in f.text for f in store) == 3
    assert all(f.level is not Level.FAULT for f in store)
