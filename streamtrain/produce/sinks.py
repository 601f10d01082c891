"""Where messages go: a Kafka topic, or lines of a file or pipe."""

from __future__ import annotations

import asyncio
import functools
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, BinaryIO, Protocol

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code
from aiokafka.partitioner import murmur2

from consumers.kafka.settings import KafkaConnection
from streamtrain.errors import PartitionMissing, SourceUnavailable
from streamtrain.produce.records import Message

__all__ = ["KafkaSink", "LineSink", "Sink", "create_topic", "kafka_sink"]

_BATCHES_IN_FLIGHT_MAX = 32
_BATCH_BYTES = 256 * 1024


class Sink(Protocol):
    """Takes messages, in order."""

    async def write(self, messages: Sequence[Message]) -> None:
        """Takes messages; waits where it is behind."""
        ...

    async def flush(self) -> None:
        """Waits until everything is where it should be."""
        ...


class LineSink:
    """Appends whole lines, so that a follower of the file never sees half a record for long.

    Args:
      file: opened for appending bytes; or standard output.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    async def write(self, messages: Sequence[Message]) -> None:
        """Appends and flushes."""
        self._file.write(b"".join(message.value + b"\n" for message in messages))
        self._file.flush()

    async def flush(self) -> None:
        """Nothing is held back."""


class KafkaSink:
    """Writes to a topic, idempotently: a batch that is sent again after a lost answer is stored once.

    Messages of one key go to one partition, the one that Kafka's own clients choose; others go round. Order within a
    partition is kept. Batches are filled here rather than record by record in aiokafka, which is several times faster.
    """

    def __init__(self, producer: AIOKafkaProducer, topic: str, partitions: int, timeout_s: float) -> None:
        self._producer, self._topic, self._partitions, self._timeout_s = (
            producer,
            topic,
            partitions,
            timeout_s,
        )
        self._turn = 0
        self._in_flight: deque[asyncio.Future[Any]] = deque()
        self._partition_of = functools.lru_cache(1 << 16)(
            lambda key: (murmur2(key) & 0x7FFFFFFF) % partitions
        )

    async def write(self, messages: Sequence[Message]) -> None:
        """Sends batches, a bounded number of them unanswered.

        Raises:
          SourceUnavailable: Kafka does not take them.
        """
        now_ms = time.time_ns() // 1_000_000
        builders: dict[int, Any] = {}
        for key, value in messages:
            partition = self._choose(key)
            builder = builders.get(partition)
            if builder is None:
                builder = builders[partition] = self._producer.create_batch()
            if builder.append(key=key, value=value, timestamp=now_ms) is None:
                await self._send(builder, partition)
                builder = builders[partition] = self._producer.create_batch()
                builder.append(key=key, value=value, timestamp=now_ms)
        for partition, builder in builders.items():
            await self._send(builder, partition)

    async def flush(self) -> None:
        """Waits until the brokers have everything.

        Raises:
          SourceUnavailable: they do not.
        """
        while self._in_flight:
            await self._await(self._in_flight.popleft())

    def _choose(self, key: bytes | None) -> int:
        if key is not None:
            return self._partition_of(key)
        self._turn = (self._turn + 1) % self._partitions
        return self._turn

    async def _send(self, builder: Any, partition: int) -> None:
        builder.close()
        sending = self._producer.send_batch(builder, self._topic, partition=partition)
        self._in_flight.append(await self._await(sending))
        while len(self._in_flight) > _BATCHES_IN_FLIGHT_MAX:
            await self._await(self._in_flight.popleft())

    async def _await(self, answer: Any) -> Any:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await answer
        except (KafkaError, TimeoutError) as error:
            raise SourceUnavailable(
                f"Kafka does not take records for topic {self._topic!r}: {error!r}"
            ) from error


@asynccontextmanager
async def kafka_sink(
    connection: KafkaConnection, topic: str, *, compression: str | None = "zstd", timeout_s: float = 30.0
) -> AsyncIterator[KafkaSink]:
    """A sink to a topic that exists, flushed at the end.

    Args:
      connection: the cluster.
      topic: its name.
      compression: `gzip`, `snappy`, `lz4`, `zstd` or None.
      timeout_s: how long Kafka may take to answer.

    Raises:
      SourceUnavailable: Kafka does not answer.
      PartitionMissing: there is no such topic.
    """
    partitions = await _partitions(connection, topic)
    if partitions == 0:
        raise PartitionMissing(
            f"topic {topic!r} does not exist at {connection.bootstrap_servers}: create it first"
        )
    producer = AIOKafkaProducer(
        **connection.client_options(),
        enable_idempotence=True,
        compression_type=compression,
        max_batch_size=_BATCH_BYTES,
    )
    try:
        await producer.start()
        sink = KafkaSink(producer, topic, partitions, timeout_s)
        yield sink
        await sink.flush()
    except KafkaError as error:
        raise SourceUnavailable(
            f"Kafka at {connection.bootstrap_servers} does not answer: {error}"
        ) from error
    finally:
        await producer.stop()


async def create_topic(connection: KafkaConnection, topic: str, partitions: int) -> bool:
    """Creates a topic with the brokers' default replication; False where it exists already, whatever its partitions.

    Raises:
      SourceUnavailable: Kafka does not answer, or refused.
    """
    async with _admin(connection) as admin:
        # -1 is the brokers' default; aiokafka takes it only together with an assignment, which may be empty.
        reply = await admin.create_topics([NewTopic(topic, partitions, -1, replica_assignments={})])
        for _, code, *_ in reply.topic_errors:
            if (error := for_code(code)) is TopicAlreadyExistsError:
                return False
            if code:
                raise error(topic)
    return True


async def _partitions(connection: KafkaConnection, topic: str) -> int:
    async with _admin(connection) as admin:
        if topic not in await admin.list_topics():
            return 0
        (found,) = await admin.describe_topics([topic])
        return len(found["partitions"])


@asynccontextmanager
async def _admin(connection: KafkaConnection) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(**connection.client_options())
    try:
        await admin.start()
        yield admin
    except KafkaError as error:
        raise SourceUnavailable(f"Kafka at {connection.bootstrap_servers}: {error}") from error
    finally:
        await admin.close()
