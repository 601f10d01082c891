"""What Kafka knows of a topic: its id and partitions, asked without creating it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import NodeNotReadyError, NoError, UnknownTopicOrPartitionError, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.metadata import MetadataRequest_v5
from aiokafka.protocol.types import (
    AbstractType,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

__all__ = ["Topic", "describe_topic", "operations_of"]

_NO_ID = uuid.UUID(int=0)
# Source: Kafka's AclOperation, https://kafka.apache.org/protocol.html; an answer has the bit of each by its code.
_OPERATIONS = {3: "Read", 4: "Write", 8: "Describe", 10: "DescribeConfigs"}


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as it is now.

    Attributes:
      id: Kafka's own id of this incarnation (KIP-516), as hex; "" where brokers are older than Kafka 2.8.
      partitions: their numbers, ascending.
      operations: of those in `operations_of`, what this user may do with it; None where brokers do not tell.
    """

    id: str
    partitions: tuple[int, ...]
    operations: frozenset[str] | None = None


def operations_of(bits: int) -> frozenset[str] | None:
    """Reads `authorized_operations` of an answer: Read, Write, Describe and DescribeConfigs; None where it tells nothing."""
    if bits < 0:
        return None
    return frozenset(name for code, name in _OPERATIONS.items() if bits >> code & 1)


async def describe_topic(client: AIOKafkaClient, name: str) -> Topic | None:
    """Asks a broker for a topic; None where it does not exist. Never creates it.

    Raises:
      KafkaError: the broker did not answer, or refused.
    """
    node = client.get_random_node()
    if node is None:
        raise NodeNotReadyError("no broker is known")
    reply = (await client.send(node, _TopicRequest(name))).to_object()
    (found,) = reply["topics"]
    error = for_code(found["error_code"])
    if error is UnknownTopicOrPartitionError:
        return None
    if error is not NoError:
        raise error(name)
    topic_id = found.get("topic_id", _NO_ID)
    return Topic(
        "" if topic_id == _NO_ID else topic_id.hex,
        tuple(sorted(partition["partition"] for partition in found["partitions"])),
        operations_of(found.get("authorized_operations", -1)),
    )


class _Uuid(AbstractType[uuid.UUID]):
    @classmethod
    def encode(cls, value: uuid.UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: Any) -> uuid.UUID:
        return uuid.UUID(bytes=data.read(16))


class _MetadataResponse_v10(Response):
    """Source: Kafka's protocol guide, https://kafka.apache.org/protocol.html#The_Messages_Metadata."""

    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class _MetadataRequest_v10(RequestStruct):
    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 10
    RESPONSE_TYPE = _MetadataResponse_v10
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(("topic_id", _Uuid), ("topic", CompactString("utf-8")), ("tags", TaggedFields)),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _TopicRequest(Request[MetadataRequest_v5 | _MetadataRequest_v10]):
    """aiokafka 0.14 speaks Metadata up to version 5; topic ids came with version 10 (Kafka 2.8)."""

    API_KEY = 3

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def build(self, request_struct_class: type[Any]) -> Any:
        if request_struct_class.API_VERSION >= 10:
            return request_struct_class([(_NO_ID, self._topic, {})], False, False, True, {})
        return request_struct_class([self._topic], False)
