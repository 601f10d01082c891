"""Producing to a real topic, read back by the source."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

from consumers.kafka import KafkaSettings, KafkaSource
from consumers.kafka.settings import KafkaConnection
from streamtrain.errors import PartitionMissing, SourceUnavailable
from streamtrain.produce import SyntheticStream, create_topic, file_batches, kafka_sink, produce
from tests.servers import KafkaServer

pytestmark = pytest.mark.kafka


async def read_values(kafka: KafkaServer, topic: str) -> dict[str, list[bytes]]:
    settings = KafkaSettings(kind="kafka", bootstrap_servers=kafka.bootstrap_servers, topic=topic)
    source = KafkaSource(settings, until_end=True)
    values: dict[str, list[bytes]] = defaultdict(list)
    try:
        await source.start(None)
        while (chunk := await source.read()) is not None:
            values[chunk.partition] += chunk.records  # type: ignore[arg-type]
    finally:
        await source.close()
    return values


async def test_a_keyed_stream_arrives_once_in_order_of_its_keys(kafka: KafkaServer) -> None:
    connection = KafkaConnection(bootstrap_servers=kafka.bootstrap_servers)
    assert await create_topic(connection, "sink-keyed", 4)
    assert not await create_topic(connection, "sink-keyed", 4)
    sent = [m.value for batch in SyntheticStream(1).batches(20_000, 1000, live=False) for m in batch]
    async with kafka_sink(connection, "sink-keyed") as sink:
        batches = SyntheticStream(1).batches(20_000, 1000, live=False, key="user_id")
        assert await produce(batches, sink) == 20_000
    values = await read_values(kafka, "sink-keyed")
    assert sorted(value for its in values.values() for value in its) == sorted(sent)
    users = defaultdict(set)
    for partition, its in values.items():
        times = [json.loads(value)["event_time_ms"] for value in its]
        assert times == sorted(times)
        for value in its:
            users[json.loads(value)["user_id"]].add(partition)
    assert len(values) == 4
    assert all(len(partitions) == 1 for partitions in users.values())


async def test_files_spread_evenly_over_partitions_in_order(kafka: KafkaServer, tmp_path: Path) -> None:
    connection = KafkaConnection(bootstrap_servers=kafka.bootstrap_servers)
    (tmp_path / "a.jsonl").write_text("".join(f'{{"n": {n}}}\n' for n in range(900)))
    await create_topic(connection, "sink-files", 3)
    async with kafka_sink(connection, "sink-files", compression=None) as sink:
        await produce(file_batches([tmp_path / "a.jsonl"], 100), sink)
    values = await read_values(kafka, "sink-files")
    numbers = {partition: [json.loads(value)["n"] for value in its] for partition, its in values.items()}
    assert sorted(n for its in numbers.values() for n in its) == list(range(900))
    assert all(len(its) == 300 and its == sorted(its) for its in numbers.values())


async def test_a_sink_without_its_topic_or_broker_says_so(kafka: KafkaServer) -> None:
    connection = KafkaConnection(bootstrap_servers=kafka.bootstrap_servers)
    with pytest.raises(PartitionMissing, match="'sink-nowhere' does not exist"):
        async with kafka_sink(connection, "sink-nowhere"):
            pass
    with pytest.raises(SourceUnavailable, match=r"127\.0\.0\.1:1"):
        async with kafka_sink(KafkaConnection(bootstrap_servers="127.0.0.1:1"), "any"):
            pass
