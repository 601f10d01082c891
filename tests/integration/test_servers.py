"""The test servers themselves: what the other tests build on must be true of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import TopicAlreadyExistsError

from tests.servers import KafkaServer, RedisCluster, RedisServer


@pytest.mark.kafka
async def test_kafka_gives_back_what_was_produced_in_order(kafka: KafkaServer) -> None:
    await kafka.create_topic("servers-order", 2)
    await kafka.produce("servers-order", [b"%d" % i for i in range(100)], partition=1)
    async with AIOKafkaConsumer(
        "servers-order", bootstrap_servers=kafka.bootstrap_servers, auto_offset_reset="earliest"
    ) as consumer:
        values = [(await consumer.getone()).value for _ in range(100)]
    assert values == [b"%d" % i for i in range(100)]


@pytest.mark.kafka
async def test_kafka_refuses_a_topic_that_exists(kafka: KafkaServer) -> None:
    await kafka.create_topic("servers-twice")
    with pytest.raises(TopicAlreadyExistsError):
        await kafka.create_topic("servers-twice")


@pytest.mark.redis
def test_redis_is_empty_and_evicts_nothing(redis_server: RedisServer) -> None:
    assert redis_server.cli("DBSIZE") == "0"
    assert redis_server.cli("CONFIG", "GET", "maxmemory-policy").split()[-1] == "noeviction"


@pytest.mark.redis
def test_redis_keeps_its_port_and_file_when_killed(start_redis: Callable[..., RedisServer]) -> None:
    server = start_redis("--appendonly", "yes", "--appendfsync", "always")
    port = server.port
    server.cli("SET", "key", "value")
    server.kill()
    server.start()
    assert (server.port, server.cli("GET", "key")) == (port, "value")


@pytest.mark.redis
def test_redis_cluster_spreads_slots_over_three_masters(redis_cluster: RedisCluster) -> None:
    masters = [
        line for line in redis_cluster.nodes[0].cli("CLUSTER", "NODES").splitlines() if "master" in line
    ]
    assert len(masters) == 3
    info = redis_cluster.nodes[0].cli("CLUSTER", "INFO")
    assert "cluster_slots_ok:16384" in info
