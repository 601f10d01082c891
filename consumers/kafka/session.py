"""One connection to Kafka: a consumer that reads chunks, and a client that asks about the topic."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from aiokafka import AIOKafkaConsumer
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import create_conn
from aiokafka.errors import KafkaConnectionError, KafkaError
from aiokafka.structs import ConsumerRecord, TopicPartition

from consumers.kafka.positions import partition_name
from consumers.kafka.settings import KafkaSettings
from consumers.kafka.topics import Topic, describe_topic
from streamtrain.sources import Chunk

__all__ = ["CLOSE_TIMEOUT_S", "Session", "bootstrap", "bounded"]

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 5.0
# A broker waits for so much, or `fetch_wait_ms`, before it answers. With less it answers each batch of a producer by
# itself, and a chunk of ten records costs nearly as much to decode as one of a hundred.
FETCH_BYTES_MIN = 64 << 10


class Session:
    """Reads the partitions that it is told to, in read_committed, each from where it is told to.

    There is no group management: every partition is assigned by hand, so no broker can take one away. Not polling
    is the back-pressure: aiokafka fetches the next page of a partition only when the page before was taken, so it
    holds at most one page a partition.

    Raises (all coroutines): KafkaError, OSError, TimeoutError.
    """

    def __init__(self, settings: KafkaSettings, *, group_id: str | None) -> None:
        options = settings.client_options()
        self._topic = settings.topic
        self._client = AIOKafkaClient(**options)
        self._options = options
        self._consumer = AIOKafkaConsumer(
            **options,
            group_id=group_id,
            isolation_level="read_committed",
            enable_auto_commit=False,
            # Anything else moves the position silently when an offset is out of range.
            auto_offset_reset="none",
            fetch_min_bytes=FETCH_BYTES_MIN,
            fetch_max_wait_ms=settings.fetch_wait_ms,
            fetch_max_bytes=settings.fetch_bytes_max,
            max_partition_fetch_bytes=settings.partition_fetch_bytes_max,
        )
        self._next: dict[int, int] = {}

    async def open(self) -> None:
        """Connects."""
        await bootstrap(self._client, self._options)
        await self._consumer.start()

    async def close(self) -> None:
        """Disconnects within a few CLOSE_TIMEOUT_S, whatever state the connection is in."""
        # aiokafka's `stop` may end as if it were cancelled, when a fetch was in hand, and then leaves its client open.
        for close in (self._consumer.stop, self._consumer._client.close, self._client.close):
            if error := await bounded(close(), CLOSE_TIMEOUT_S):
                logger.debug("closing a connection to Kafka: %r", error)

    async def topic(self) -> Topic | None:
        """The topic as it is now; None where it does not exist."""
        return await describe_topic(self._client, self._topic)

    async def begin(self, partitions: Iterable[int]) -> dict[int, int]:
        """By partition, the first offset that there still is."""
        return self._by_number(await self._consumer.beginning_offsets(self._named(partitions)))

    async def end(self, partitions: Iterable[int]) -> dict[int, int]:
        """By partition, the offset after the last one that can be read: before the first open transaction."""
        return self._by_number(await self._consumer.end_offsets(self._named(partitions)))

    async def at_time(self, partitions: Iterable[int], timestamp_ms: int) -> dict[int, int]:
        """By partition, the first offset of that time or later; the end where there is none."""
        partitions = list(partitions)
        found = await self._consumer.offsets_for_times(dict.fromkeys(self._named(partitions), timestamp_ms))
        offsets = await self.end(partitions)
        return offsets | {tp.partition: hit.offset for tp, hit in found.items() if hit is not None}

    def assign(self, offsets: Mapping[int, int]) -> None:
        """Reads these partitions, and no others, from these offsets on."""
        self._consumer.assign(self._named(offsets))
        # No await before the seeks: the client's own task never sees a partition without a position.
        for number, offset in offsets.items():
            self._consumer.seek(TopicPartition(self._topic, number), offset)
        self._next = dict(offsets)

    @property
    def reading(self) -> set[int]:
        """The partitions assigned and not paused."""
        return set(self._next)

    def pause(self, number: int) -> None:
        """Fetches no more of a partition."""
        self._consumer.pause(TopicPartition(self._topic, number))
        del self._next[number]

    async def poll(self, records_max: int, timeout_s: float) -> list[Chunk]:
        """Waits for records. A chunk may be empty: its offsets held aborted records or control records only.

        Raises:
          OffsetOutOfRangeError: of aiokafka; no position has moved.
        """
        fetched = await self._consumer.getmany(timeout_ms=int(timeout_s * 1000), max_records=records_max)
        chunks = []
        for number, first in list(self._next.items()):
            partition = TopicPartition(self._topic, number)
            # Does not wait: the partition has had a position since it was assigned.
            position = await self._consumer.position(partition)
            records = fetched.get(partition, [])
            if position > first:
                chunks.append(_chunk(partition_name(self._topic, number), first, position, records))
                self._next[number] = position
        return chunks

    def known_end(self, number: int) -> int:
        """The end of a partition as of its last fetch; 0 before the first."""
        return int(self._consumer.last_stable_offset(TopicPartition(self._topic, number)) or 0)

    async def commit(self, offsets: Mapping[int, int]) -> None:
        """Commits group offsets."""
        await self._consumer.commit({TopicPartition(self._topic, n): offset for n, offset in offsets.items()})

    def _named(self, partitions: Iterable[int]) -> list[TopicPartition]:
        return [TopicPartition(self._topic, number) for number in partitions]

    def _by_number(self, offsets: Mapping[Any, int]) -> dict[int, int]:
        return {partition.partition: int(offset) for partition, offset in offsets.items()}


async def bootstrap(client: AIOKafkaClient, options: Mapping[str, Any]) -> None:
    """Finds the brokers.

    Args:
      options: what the client was made with, see `KafkaConnection.client_options`.

    Raises:
      KafkaConnectionError: no broker can be reached, and why: aiokafka tells a refused password or certificate to its
        log alone.
    """
    try:
        await client.bootstrap()
    except KafkaConnectionError as error:
        host, port, _ = client.hosts[0]
        unknown = {"bootstrap_servers", "retry_backoff_ms"}
        known = {name: value for name, value in options.items() if name not in unknown}
        try:
            (await create_conn(host, port, **known)).close()
        except (KafkaError, OSError, TimeoutError) as why:
            raise KafkaConnectionError(f"{host}:{port}: {type(why).__name__}: {why}") from error
        raise


async def bounded(coroutine: Coroutine[Any, Any, object], timeout_s: float) -> BaseException | None:
    """Runs a coroutine of the client's for so long at most; returns what went wrong.

    Unlike `asyncio.wait_for` it returns in time also where the coroutine swallows its cancellation, and it does not
    take a cancellation inside the client for one of the caller, which would end the caller without a word.
    """
    task = asyncio.ensure_future(coroutine)
    try:
        await asyncio.wait({task}, timeout=timeout_s)
    finally:
        task.cancel()
    if not task.done():
        return TimeoutError(f"no answer within {timeout_s:g} s")
    return asyncio.CancelledError() if task.cancelled() else task.exception()


def _chunk(partition: str, first: int, position: int, records: Sequence[ConsumerRecord[Any, Any]]) -> Chunk:
    return Chunk(
        partition,
        first,
        position,
        np.fromiter((record.offset for record in records), np.int64, len(records)),
        np.fromiter((record.timestamp for record in records), np.int64, len(records)),
        [record.value for record in records],
        [record.key for record in records],
    )
