"""Sends dead letters to a Kafka topic, with the headers of Kafka Connect's dead letter queue."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    KafkaError,
    MessageSizeTooLargeError,
    RecordTooLargeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)

from consumers.kafka.session import CLOSE_TIMEOUT_S, bounded
from consumers.kafka.topics import describe_topic
from streamtrain.dead_letters.letter import DeadLetter
from streamtrain.dead_letters.settings import DeadLetterTopic
from streamtrain.errors import DeadLettersUnavailable
from streamtrain.kafka_connection import KafkaConnection

__all__ = ["TopicSink", "headers_of"]

logger = logging.getLogger(__name__)

# What may be under way and unanswered: the producer holds no more than this.
_PORTION_LETTERS, _PORTION_BYTES = 500, 4 << 20
_BATCH_BYTES = 256 << 10
# Headers and the frame of a record, beside its key and value.
_FRAME_BYTES = 64 << 10
_CONNECT = "__connect.errors."


class TopicSink:
    """A `DeadLetterSink`: an idempotent producer, which waits until all replicas in sync have each letter.

    A producer that failed is thrown away and a new one made at the next call, so a letter may be there twice; it is
    never missing.

    Args:
      settings: the topic and the bounds.
      connection: the cluster.
      model: the model's name, for the headers.
    """

    def __init__(self, settings: DeadLetterTopic, connection: KafkaConnection, model: str) -> None:
        self._settings, self._connection, self._model = settings, connection, model
        self._producer: AIOKafkaProducer | None = None

    @property
    def name(self) -> str:
        return f"topic {self._settings.topic!r} at {self._connection.bootstrap_servers}"

    @property
    def bytes_max(self) -> int:
        return self._settings.value_bytes_max

    async def open(self) -> None:
        """As `DeadLetterSink.open`."""
        await self.write([])

    async def write(self, letters: Iterable[DeadLetter]) -> int:
        """As `DeadLetterSink.write`."""
        try:
            producer = await self._connected()
            count, portion, size = 0, list[DeadLetter](), 0
            for letter in letters:
                portion.append(letter)
                count, size = count + 1, size + len(letter.value or b"") + len(letter.key or b"")
                if len(portion) >= _PORTION_LETTERS or size >= _PORTION_BYTES:
                    await self._send(producer, portion)
                    portion, size = [], 0
            await self._send(producer, portion)
        except (KafkaError, OSError, TimeoutError) as error:
            await self.close()
            raise DeadLettersUnavailable(
                f"dead letters cannot be sent to {self.name}: {self._remedy(error)}. It is tried again by itself"
            ) from error
        return count

    async def close(self) -> None:
        """As `DeadLetterSink.close`."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await _closed(producer)

    async def _connected(self) -> AIOKafkaProducer:
        if self._producer is None:
            producer = AIOKafkaProducer(
                **self._connection.client_options(),
                enable_idempotence=True,
                compression_type="zstd",
                max_batch_size=_BATCH_BYTES,
                max_request_size=self._settings.value_bytes_max + _FRAME_BYTES,
            )
            try:
                async with asyncio.timeout(self._settings.timeout_s):
                    await producer.start()
                    # Asked without creating it: a producer's own question would, where the broker allows it.
                    if await describe_topic(producer.client, self._settings.topic) is None:
                        raise UnknownTopicOrPartitionError(self._settings.topic)
            except BaseException:
                await _closed(producer)
                raise
            self._producer = producer
        return self._producer

    async def _send(self, producer: AIOKafkaProducer, letters: list[DeadLetter]) -> None:
        """Returns once the brokers have `letters`."""
        sent: list[asyncio.Future[Any]] = []
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                for letter in letters:
                    # Kafka's clients refuse a record with neither key nor value; a header tells such a null apart.
                    value = b"" if letter.value is None and letter.key is None else letter.value
                    headers = headers_of(letter, self._model)
                    sent.append(
                        await producer.send(self._settings.topic, value, key=letter.key, headers=headers)
                    )
                await asyncio.gather(*sent)
        finally:
            # Where one was refused, nobody asks what became of the others: all are sent again.
            for answer in sent:
                if answer.done() and not answer.cancelled():
                    answer.exception()
                answer.cancel()

    def _remedy(self, error: BaseException) -> str:
        topic, servers = self._settings.topic, self._connection.bootstrap_servers
        if isinstance(error, UnknownTopicOrPartitionError):
            return (
                f"the topic does not exist; create it with kafka-topics.sh --bootstrap-server {servers} --create "
                f"--topic {topic}"
            )
        if isinstance(error, MessageSizeTooLargeError | RecordTooLargeError):
            return (
                "it refuses a record of this size; raise the topic's max.message.bytes, or lower "
                "training.bad_samples.dead_letters.value_bytes_max"
            )
        if isinstance(error, TopicAuthorizationFailedError | ClusterAuthorizationFailedError):
            user = self._connection.sasl_username or "this client"
            return f"Kafka does not allow it; grant WRITE and DESCRIBE on the topic, and IDEMPOTENT_WRITE, to {user}"
        if isinstance(error, TimeoutError):
            return (
                f"no answer within {self._settings.timeout_s:g} s; check the brokers and min.insync.replicas"
            )
        return f"{error!r}; check the brokers and the network"


def headers_of(letter: DeadLetter, model: str) -> list[tuple[str, bytes]]:
    """The headers that Kafka Connect's dead letter queue writes (KIP-298), and what it has no name for.

    Its `stage`, `connector.name`, `task.id` and `class.name` stand for: decoding, the model, 0 (there is one daemon),
    and the decoder.
    """
    topic, _, number = letter.partition.rpartition(":")
    if not (topic and number.isdecimal()):
        topic, number = letter.partition, "0"
    message = letter.message if letter.field is None else f"field {letter.field!r}: {letter.message}"
    named: dict[str, str | None] = {
        f"{_CONNECT}topic": topic,
        f"{_CONNECT}partition": number,
        f"{_CONNECT}offset": str(letter.offset),
        f"{_CONNECT}connector.name": model,
        f"{_CONNECT}task.id": "0",
        f"{_CONNECT}stage": "VALUE_CONVERTER",
        f"{_CONNECT}class.name": "streamtrain.samples.decoder.Decoder",
        f"{_CONNECT}exception.class.name": "streamtrain.errors.BadSample",
        f"{_CONNECT}exception.message": message,
        "streamtrain.reason": letter.reason,
        "streamtrain.field": letter.field,
        "streamtrain.leaves": letter.leaves,
        "streamtrain.timestamp_ms": None if letter.time_ms is None else str(letter.time_ms),
        "streamtrain.value_bytes": str(letter.value_bytes) if letter.cut else None,
        "streamtrain.value_null": "true" if letter.value is None else None,
    }
    return [
        (name, text.encode("utf-8", "backslashreplace")) for name, text in named.items() if text is not None
    ]


async def _closed(producer: Any) -> None:
    # What is unanswered would be waited for; it is sent again by the next producer.
    for close in (producer.stop, producer.client.close):
        if error := await bounded(close(), CLOSE_TIMEOUT_S):
            logger.debug("closing a producer of dead letters: %r", error)
