"""What `streamtrain doctor` finds out about Kafka: it reads descriptions and offsets, and changes nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    GroupCoordinatorNotAvailableError,
    KafkaError,
    TopicAuthorizationFailedError,
    for_code,
)
from aiokafka.protocol.admin import DescribeGroupsRequest_v3, DescribeGroupsResponse_v3
from aiokafka.protocol.api import Request

from consumers.kafka.positions import check_identity, number_of, seek_offsets
from consumers.kafka.session import CLOSE_TIMEOUT_S, Session, bootstrap, bounded
from consumers.kafka.settings import KafkaSettings
from consumers.kafka.topics import Topic, describe_topic, operations_of
from streamtrain.errors import SourceError
from streamtrain.findings import Finding, Resumption
from streamtrain.kafka_connection import KafkaConnection

__all__ = ["diagnose", "diagnose_dead_letters"]

_COORDINATOR_ATTEMPTS, _COORDINATOR_PAUSE_S = 20, 0.25
_FAILURES = (KafkaError, OSError, TimeoutError)


async def diagnose(settings: KafkaSettings, resumption: Resumption) -> list[Finding]:
    """Whether the topic can be read from where the log says, and for how long still.

    Raises:
      ConfigError: a password or certificate cannot be read.
    """
    session = Session(settings, group_id=None)
    try:
        try:
            await session.open()
        except _FAILURES as error:
            return [_unreachable("source", settings, error)]
        try:
            topic = await session.topic()
        except _FAILURES as error:
            return [_refused("source", settings, settings.topic, error)]
        if topic is None:
            return [_missing("source", settings, settings.topic)]
        found = _described(settings, topic)
        if topic.operations is not None and "Read" not in topic.operations:
            return found
        try:
            found += await _positions(settings, session, topic, resumption)
            found += await _administered(settings, session, topic, resumption)
        except _FAILURES as error:
            found.append(_refused("source", settings, settings.topic, error))
        return found
    finally:
        await session.close()


async def diagnose_dead_letters(connection: KafkaConnection, topic_name: str) -> list[Finding]:
    """Whether dead letters could be sent to a topic. None is sent.

    Raises:
      ConfigError: a password or certificate cannot be read.
    """
    options = connection.client_options()
    client = AIOKafkaClient(**options)
    try:
        await bootstrap(client, options)
        topic = await describe_topic(client, topic_name)
    except TopicAuthorizationFailedError as error:
        return [_refused("dead letters", connection, topic_name, error, dead_letters=True)]
    except _FAILURES as error:
        return [_unreachable("dead letters", connection, error)]
    finally:
        await bounded(client.close(), CLOSE_TIMEOUT_S)
    if topic is None:
        return [_missing("dead letters", connection, topic_name)]
    if topic.operations is not None and "Write" not in topic.operations:
        return [
            Finding.fault(
                "dead letters",
                f"this user may not write to topic {topic_name!r}",
                _grant(connection, f"DEAD_LETTERS={topic_name}"),
            )
        ]
    return [Finding.ok("dead letters", f"topic {topic_name!r} is there, and may be written to")]


def _described(settings: KafkaSettings, topic: Topic) -> list[Finding]:
    """What the topic's description alone tells."""
    found = [
        Finding.ok(
            "source",
            f"Kafka at {settings.bootstrap_servers} answers; topic {settings.topic!r} has "
            f"{len(topic.partitions)} partitions",
        )
    ]
    if not topic.id:
        found.append(
            Finding.warning(
                "source",
                "the brokers are older than Kafka 2.8, which gives topics an id: that a topic was deleted and created again is "
                "noticed by its offsets only, and rights are not told",
                "upgrade the brokers",
            )
        )
    if topic.operations is not None and "Read" not in topic.operations:
        found.append(
            Finding.fault(
                "source",
                f"this user may not read topic {settings.topic!r}",
                _grant(settings, f"TOPIC={settings.topic}"),
            )
        )
    return found


async def _positions(
    settings: KafkaSettings, session: Session, topic: Topic, resumption: Resumption
) -> list[Finding]:
    """Whether what comes next is still there."""
    begin, end = await session.begin(topic.partitions), await session.end(topic.partitions)
    if resumption.positions is None:
        held = sum(end[number] - begin[number] for number in end)
        return [
            Finding.ok(
                "source", f"a new model begins with {settings.start!r}; the topic holds {held} offsets"
            )
        ]
    try:
        check_identity(settings.topic, resumption.identity, topic.id)
        offsets = seek_offsets(settings.topic, _numbered(settings.topic, resumption.positions), begin, end)
    except SourceError as error:
        if settings.on_data_loss == "skip":
            return [
                Finding.warning(
                    "source", str(error), 'source.on_data_loss = "skip" goes on behind what is lost'
                )
            ]
        return [Finding.fault("source", str(error), "see docs/operations.md, Lost records")]
    lag = sum(end[number] - offset for number, offset in offsets.items())
    return [Finding.ok("source", f"all that the log needs next is there; {lag} offsets behind")]


async def _administered(
    settings: KafkaSettings, session: Session, topic: Topic, resumption: Resumption
) -> list[Finding]:
    """What takes an administrator's requests: the topic's configuration, and the rights on groups."""
    groups = [*filter(None, (settings.group_id, *resumption.groups))]
    async with _admin(settings) as admin:
        found = []
        if topic.operations is not None and "DescribeConfigs" not in topic.operations:
            found.append(
                Finding.warning(
                    "source",
                    f"this user may not read the configuration of topic {settings.topic!r}, so that retention is not checked",
                    _grant(settings, f"TOPIC={settings.topic}"),
                )
            )
        else:
            config = await _config(admin, settings.topic)
            found += _cleanup(settings, config)
            found += await _retention(settings, session, topic, config, resumption)
        if topic.operations is not None:
            # Brokers that tell rights on topics tell those on groups too.
            found += [await _group(settings, admin, group) for group in groups]
        return found


class _DescribeGroupsRequest_v3(DescribeGroupsRequest_v3):
    """aiokafka 0.14 reads the answer to version 3 as one to version 2, which lacks the rights."""

    RESPONSE_TYPE = DescribeGroupsResponse_v3


class _GroupRequest(Request[_DescribeGroupsRequest_v3]):
    API_KEY = 15

    def __init__(self, group: str) -> None:
        self._group = group

    def build(self, request_struct_class: type[_DescribeGroupsRequest_v3]) -> _DescribeGroupsRequest_v3:
        return request_struct_class([self._group], True)


async def _config(admin: AIOKafkaAdminClient, topic: str) -> dict[str, str]:
    """The topic's configuration by name."""
    resource = ConfigResource(ConfigResourceType.TOPIC, topic)
    (reply,) = await admin.describe_configs([resource])
    (code, message, _, _, entries) = reply.resources[0]
    if code:
        raise for_code(code)(message)
    return {entry[0]: entry[1] for entry in entries}


def _cleanup(settings: KafkaSettings, config: Mapping[str, str]) -> list[Finding]:
    policy = config.get("cleanup.policy", "delete")
    if "compact" not in policy:
        return []
    return [
        Finding.warning(
            "source",
            f"topic {settings.topic!r} is compacted (cleanup.policy = {policy}): samples that share a key are removed, learned "
            "or not",
            _alter(settings, "cleanup.policy=delete"),
        )
    ]


async def _retention(
    settings: KafkaSettings,
    session: Session,
    topic: Topic,
    config: Mapping[str, str],
    resumption: Resumption,
) -> list[Finding]:
    """How near the records that come next are to being deleted."""
    retention_ms = int(config.get("retention.ms", -1))
    if retention_ms < 0:
        return [Finding.ok("source", "the topic keeps its records for ever (retention.ms = -1)")]
    kept = f"the topic keeps its records for {retention_ms / 3_600_000:,.1f} h"
    if resumption.positions is None:
        return [Finding.ok("source", kept)]
    # By the records' own times, as retention goes: those before the first one that is younger than half of it are in
    # danger. Times that jump about may hide one.
    half = await session.at_time(topic.partitions, int(time.time() * 1000) - retention_ms // 2)
    positions = _numbered(settings.topic, resumption.positions)
    late = sorted(number for number, offset in half.items() if positions.get(number, offset) < offset)
    if not late:
        return [Finding.ok("source", f"{kept}; what comes next has more than half of it left")]
    return [
        Finding.warning(
            "source",
            f"{kept}, and what comes next in partition {', '.join(map(str, late[:8]))} has waited for more than half of it: "
            "it may be deleted before it is learned",
            _alter(settings, f"retention.ms={2 * retention_ms}"),
        )
    ]


async def _group(settings: KafkaSettings, admin: AIOKafkaAdminClient, group: str) -> Finding:
    grant = _grant(settings, f"TOPIC={settings.topic} GROUPS_READ={group}")
    refused = Finding.fault("source", f"this user may not take part in group {group!r}", grant)
    try:
        coordinator = await _coordinator(admin, group)
        reply = await admin._client.send(coordinator, _GroupRequest(group))
    except GroupAuthorizationFailedError:
        return refused
    code, *_, bits = reply.groups[0]
    operations = operations_of(bits)
    if for_code(code) is GroupAuthorizationFailedError or (
        operations is not None and "Read" not in operations
    ):
        return refused
    return Finding.ok("source", f"group {group!r} may be used")


async def _coordinator(admin: AIOKafkaAdminClient, group: str) -> int:
    """The broker that keeps a group. The first question of all makes a cluster create the topic that holds them."""
    for _ in range(_COORDINATOR_ATTEMPTS):
        try:
            return int(await admin.find_coordinator(group))
        except GroupCoordinatorNotAvailableError:
            await asyncio.sleep(_COORDINATOR_PAUSE_S)
    return int(await admin.find_coordinator(group))


@asynccontextmanager
async def _admin(settings: KafkaConnection) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(**settings.client_options())
    try:
        await admin.start()
        yield admin
    finally:
        await bounded(admin.close(), CLOSE_TIMEOUT_S)


def _numbered(topic: str, positions: Mapping[str, int]) -> dict[int, int]:
    return {number_of(name, topic): offset for name, offset in positions.items()}


def _unreachable(area: str, settings: KafkaConnection, error: BaseException) -> Finding:
    first = settings.bootstrap_servers.split(",")[0]
    host, _, port = first.rpartition(":")
    look = (
        f"openssl s_client -connect {first}"
        if settings.security_protocol.endswith("SSL")
        else f"nc -vz {host} {port}"
    )
    return Finding.fault(
        area,
        f"Kafka at {settings.bootstrap_servers} cannot be used: {error or type(error).__name__}",
        f"check bootstrap_servers, security_protocol and the credentials of the job; `{look}` shows whether anything answers",
    )


def _refused(
    area: str, settings: KafkaConnection, topic: str, error: BaseException, *, dead_letters: bool = False
) -> Finding:
    if isinstance(error, TopicAuthorizationFailedError):
        # Brokers say the same of a topic that is not there.
        grant = _grant(settings, f"{'DEAD_LETTERS' if dead_letters else 'TOPIC'}={topic}")
        return Finding.fault(area, f"this user may not even see topic {topic!r}", grant)
    return Finding.fault(
        area,
        f"Kafka at {settings.bootstrap_servers} did not tell about topic {topic!r}: {type(error).__name__}: {error}",
        "look at the brokers' own logs, then run this again",
    )


def _missing(area: str, settings: KafkaConnection, topic: str) -> Finding:
    return Finding.fault(
        area,
        f"there is no topic {topic!r} at {settings.bootstrap_servers}",
        f"kafka-topics.sh --bootstrap-server {settings.bootstrap_servers} --create --topic {topic} --partitions 4",
    )


def _grant(settings: KafkaConnection, what: str) -> str:
    """How an administrator gives the rights that are lacking."""
    who = f"User:{settings.sasl_username}" if settings.sasl_username else "User:NAME"
    topic = "" if "TOPIC=" in what else "TOPIC=THE_SOURCE "
    return f"BOOTSTRAP={settings.bootstrap_servers} PRINCIPAL={who} {topic}{what} sh deploy/kafka/acls.sh"


def _alter(settings: KafkaSettings, setting: str) -> str:
    return (
        f"kafka-configs.sh --bootstrap-server {settings.bootstrap_servers} --alter --entity-type topics "
        f"--entity-name {settings.topic} --add-config {setting}"
    )
