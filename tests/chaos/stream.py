"""The stream of the ledger: every sample carries an id of its own, and what a read_committed reader sees is the truth."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from streamtrain.sources import Chunk
from tests.servers import KafkaServer

__all__ = ["BrokerForChaos", "Stream", "Truth", "read_truth"]

_BAD_EVERY = 400
_IN_FLIGHT_MAX = 2000
_TICK_S = 0.02
_TRANSACTION = "chaos-transactions"
_TIMEOUT_S = 60.0
_TAIL_IDS, _HEAD_IDS = 8000, 3000


class BrokerForChaos(KafkaServer):
    """A broker with a second listener, whose clients are sent through a proxy.

    Args:
      inner_port: where the second listener listens.
      proxied_port: where it says that it does.
    """

    def __init__(self, folder, inner_port: int, proxied_port: int) -> None:  # type: ignore[no-untyped-def]
        super().__init__(folder)
        self._inner_port, self._proxied_port = inner_port, proxied_port

    def _properties(self, data):  # type: ignore[no-untyped-def]
        properties = super()._properties(data)
        direct = f"PLAINTEXT://127.0.0.1:{self.port}"
        return properties | {
            "listeners": f"{properties['listeners']},PROXIED://127.0.0.1:{self._inner_port}",
            "advertised.listeners": f"{direct},PROXIED://127.0.0.1:{self._proxied_port}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "PLAINTEXT",
            # A transaction that a killed broker left open must not hold readers for long.
            "transaction.abort.timed.out.transaction.cleanup.interval.ms": 1000,
        }


class Stream:
    """Produces samples until stopped; all methods run on one event loop.

    Attributes:
      acknowledged: ids that the broker has acknowledged, by itself or by the commit of their transaction.
      aborted: ids of transactions that were aborted.
      partitions: how many there are.
    """

    def __init__(self, bootstrap: str, topic: str, partitions: int, rate_hz: float, seed: int) -> None:
        self._bootstrap, self._topic, self._rate_hz = bootstrap, topic, rate_hz
        self.partitions = partitions
        self.acknowledged: set[int] = set()
        self.aborted: set[int] = set()
        self.restarts = 0
        self._next = 0
        self._random = random.Random(seed)
        self._stopping = asyncio.Event()
        self._producer: AIOKafkaProducer | None = None
        self._opening = asyncio.Lock()

    def sample(self) -> tuple[int, bytes]:
        """A new id, and the record that carries it."""
        number, self._next = self._next, self._next + 1
        dice = self._random
        # Two ids that come back after _TAIL_IDS / 2 samples, and four by a law of powers.
        seen = [2 * number % _TAIL_IDS, (2 * number + 1) % _TAIL_IDS]
        seen += [_TAIL_IDS + int(dice.paretovariate(0.6)) % _HEAD_IDS for _ in range(4)]
        record = {"id": number, "user": dice.randrange(200), "seen": seen, "y": dice.randrange(2)}
        return number, json.dumps(record).encode()

    async def run(self) -> None:
        """Produces, with an idempotent producer, whatever becomes of the broker."""
        due = time.monotonic()
        waiting: set[asyncio.Task[None]] = set()
        while not self._stopping.is_set():
            await asyncio.sleep(_TICK_S)
            count = int((time.monotonic() - due) * self._rate_hz)
            due += count / self._rate_hz
            for _ in range(min(count, 100)):
                if len(waiting) < _IN_FLIGHT_MAX:
                    task = asyncio.create_task(self._send())
                    waiting.add(task)
                    task.add_done_callback(waiting.discard)
        if waiting:
            await asyncio.wait(waiting, timeout=_TIMEOUT_S)
        for task in waiting:
            task.cancel()

    async def _send(self) -> None:
        number, record = self.sample()
        partition = number % self.partitions
        producer = await self._open()
        try:
            if number % _BAD_EVERY == 0:
                await (await producer.send(self._topic, b"not a sample", partition=partition))
                return
            await (await producer.send(self._topic, record, partition=partition))
        except (KafkaError, asyncio.CancelledError, AssertionError):
            # Whether the broker has it is open: the topic tells at the end. A producer that failed is given up.
            if self._producer is producer:
                self._producer = None
                self.restarts += 1
                asyncio.get_running_loop().create_task(_close(producer))
            return
        self.acknowledged.add(number)

    async def _open(self) -> AIOKafkaProducer:
        async with self._opening:
            while self._producer is None:
                producer = AIOKafkaProducer(
                    bootstrap_servers=self._bootstrap,
                    enable_idempotence=True,
                    linger_ms=5,
                    request_timeout_ms=5000,
                    metadata_max_age_ms=1000,
                )
                try:
                    await producer.start()
                    self._producer = producer
                except KafkaError:
                    await _close(producer)
                    await asyncio.sleep(0.2)
            return self._producer

    async def stop(self) -> None:
        """Ends `run` and closes the producer; leaves no transaction open."""
        self._stopping.set()
        if self._producer is not None:
            await _close(self._producer)
        async with asyncio.timeout(_TIMEOUT_S):
            # Starting under the transactional id aborts what an earlier transaction left open.
            async with self._transactional():
                pass

    async def transaction(self, count: int, commit: bool) -> None:
        """Produces `count` samples over all partitions in a transaction, and commits or aborts it."""
        samples = [self.sample() for _ in range(count)]
        numbers = {number for number, _ in samples}
        async with asyncio.timeout(_TIMEOUT_S), self._transactional() as producer:
            await producer.begin_transaction()
            for number, record in samples:
                await (await producer.send(self._topic, record, partition=number % self.partitions))
            if commit:
                await producer.commit_transaction()
                self.acknowledged |= numbers
            else:
                await producer.abort_transaction()
                self.aborted |= numbers

    def _transactional(self) -> AIOKafkaProducer:
        return AIOKafkaProducer(
            bootstrap_servers=self._bootstrap,
            transactional_id=_TRANSACTION,
            transaction_timeout_ms=10_000,
            request_timeout_ms=5000,
        )

    async def last_words(self) -> set[int]:
        """One more sample to each partition, so that a reader who has them all has read everything."""
        numbers = set()
        async with AIOKafkaProducer(bootstrap_servers=self._bootstrap, enable_idempotence=True) as producer:
            for partition in range(self.partitions):
                number, record = self.sample()
                await producer.send_and_wait(self._topic, record, partition=partition)
                numbers.add(number)
        self.acknowledged |= numbers
        return numbers

    async def compacted_beginning(self, broker: KafkaServer, count: int = 300) -> None:
        """Begins the topic with gaps: samples under few keys, of which compaction leaves the last."""
        async with AIOKafkaProducer(bootstrap_servers=self._bootstrap, enable_idempotence=True) as producer:
            for number in range(count):
                _, record = self.sample()
                key = b"%d" % (self._random.randrange(20))
                await producer.send(self._topic, record, key=key, partition=number % self.partitions)
            await producer.flush()
            async with asyncio.timeout(_TIMEOUT_S):
                while not await self._has_gaps():
                    # An append rolls the segment; only rolled ones are compacted.
                    for partition in range(self.partitions):
                        number, record = self.sample()
                        await producer.send_and_wait(
                            self._topic, record, partition=partition, key=b"%d" % number
                        )
                        self.acknowledged.add(number)
                    await asyncio.sleep(0.3)
        async with broker.admin() as admin:
            kept = ConfigResource(ConfigResourceType.TOPIC, self._topic, {"cleanup.policy": "delete"})
            await admin.alter_configs([kept])

    async def _has_gaps(self) -> bool:
        truth = await read_truth(self._bootstrap, self._topic, None)
        return all(len(p.offsets) and p.offsets[-1] - p.offsets[0] >= len(p.offsets) for p in truth.values())


async def _close(producer: AIOKafkaProducer) -> None:
    with contextlib.suppress(KafkaError, asyncio.CancelledError, TimeoutError, AssertionError):
        async with asyncio.timeout(10):
            await producer.stop()


@dataclass(frozen=True, slots=True)
class Truth:
    """What a partition holds for a read_committed reader, in order."""

    partition: str
    offsets: np.ndarray
    times_ms: np.ndarray
    records: list[bytes]

    def chunks(self, size: int = 4096) -> Iterator[Chunk]:
        """The records as a source gives them."""
        for start in range(0, len(self.records), size):
            part = slice(start, start + size)
            offsets = self.offsets[part]
            yield Chunk(
                self.partition,
                int(offsets[0]),
                int(offsets[-1]) + 1,
                offsets,
                self.times_ms[part],
                self.records[part],
            )


async def read_truth(bootstrap: str, topic: str, until: set[int] | None) -> dict[str, Truth]:
    """Reads the whole topic with a consumer of its own, apart from the product's.

    Args:
      until: ids that stand at the partitions' ends; None reads until nothing comes for a moment.
    """
    async with AIOKafkaConsumer(
        bootstrap_servers=bootstrap, isolation_level="read_committed", enable_auto_commit=False
    ) as consumer:
        await consumer._client.force_metadata_update()
        partitions = [
            TopicPartition(topic, p)
            for p in sorted(consumer.partitions_for_topic(topic) or await _partitions(consumer, topic))
        ]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        found: dict[TopicPartition, list[tuple[int, int, bytes]]] = {p: [] for p in partitions}
        left = None if until is None else set(until)
        quiet = 0
        async with asyncio.timeout(300):
            while (left is None and quiet < 2) or left:
                batches = await consumer.getmany(timeout_ms=300, max_records=20_000)
                quiet = 0 if batches else quiet + 1
                for partition, records in batches.items():
                    found[partition] += [(r.offset, r.timestamp, r.value) for r in records]
                    if left:
                        tail = (r.value for r in records[-1:])
                        left -= {json.loads(value)["id"] for value in tail if value.startswith(b"{")}
    truths = {}
    for partition, rows in found.items():
        name = f"{partition.topic}:{partition.partition}"
        offsets = np.array([row[0] for row in rows], np.int64)
        times = np.array([row[1] for row in rows], np.int64)
        truths[name] = Truth(name, offsets, times, [row[2] for row in rows])
    return truths


async def _partitions(consumer: AIOKafkaConsumer, topic: str) -> set[int]:
    await consumer.topics()
    return consumer.partitions_for_topic(topic) or set()
