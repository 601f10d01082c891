"""One member of a Kafka group that elects an owner: joins, says that it lives, and hears who owns.

Kafka's group protocol without a consumer, as Schema Registry elects its leader: there is nothing to fetch and no offset
to commit, only a failure detector. So nothing that a consumer does between polls can cost the membership.

Source: Kafka's protocol guide, https://kafka.apache.org/protocol.html, JoinGroup to LeaveGroup.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.coordinator.protocol import ConsumerProtocol
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    GroupIdNotFound,
    IllegalGenerationError,
    InconsistentGroupProtocolError,
    InvalidGroupIdError,
    InvalidSessionTimeoutError,
    KafkaError,
    MemberIdRequired,
    NoError,
    RebalanceInProgressError,
    UnknownMemberIdError,
    for_code,
)
from aiokafka.protocol.group import HeartbeatRequest, JoinGroupRequest, LeaveGroupRequest, SyncGroupRequest

from consumers.kafka.election import (
    PROTOCOL,
    Claim,
    Verdict,
    decode_claim,
    decode_verdict,
    elect,
    encode_claim,
    encode_verdict,
)
from consumers.kafka.session import CLOSE_TIMEOUT_S, bootstrap, bounded
from consumers.kafka.topics import describe_topic
from streamtrain.errors import ConfigError, SourceError
from streamtrain.kafka_connection import KafkaConnection
from streamtrain.ownership import Candidate, FailoverSettings

__all__ = ["GroupMember"]

logger = logging.getLogger(__name__)

_TROUBLE = (KafkaError, OSError, TimeoutError)
_EVICTED = (UnknownMemberIdError, IllegalGenerationError, GroupIdNotFound)
_PAUSE_S = 0.25


class _Rejoin(Exception):
    """The group forms anew: this member has to join again."""


@dataclass(slots=True)
class _Coordinator:
    client: AIOKafkaClient
    node: int


class GroupMember:
    """Runs on an event loop that nothing else keeps busy. Made and used there.

    Args:
      connection: the cluster.
      topic: what the group's members are said to read.
      settings: the group.
      candidate: this daemon.

    Attributes:
      owned: set when this daemon becomes the owner, for good.
      successor: after `owned`, the name of another that the group calls the owner.
    """

    def __init__(
        self, connection: KafkaConnection, topic: str, settings: FailoverSettings, candidate: Candidate
    ) -> None:
        self._connection, self._topic, self._settings, self._candidate = (
            connection,
            topic,
            settings,
            candidate,
        )
        self.owned = asyncio.Event()
        self.successor: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._at: _Coordinator | None = None
        self._member_id, self._generation, self._term = "", -1, -1
        self._joined = self._silent = False
        self._owner = ""

    async def run(self) -> None:
        """Takes part until cancelled. What brokers do not answer is tried again without end.

        Raises:
          ConfigError, SourceError: see `Ownership.owned`.
        """
        while True:
            try:
                await self._take_part()
            except _Rejoin as reason:
                logger.debug("joining group %s again: %s", self._settings.group_id, reason)
                self._joined = False
            except _TROUBLE as error:
                self._refuse(error)
                if not self._silent:
                    logger.warning(
                        "group %s does not answer, trying on: %s (Kafka at %s: check the network, the brokers and the "
                        "user's password); whoever owns the model goes on meanwhile",
                        self._settings.group_id,
                        str(error) or type(error).__name__,
                        self._connection.bootstrap_servers,
                    )
                self._silent = True
                await self._disconnect()
                await asyncio.sleep(_PAUSE_S)

    async def leave(self) -> None:
        """Leaves the group and disconnects, within a few CLOSE_TIMEOUT_S. `run` must have ended."""
        if not self._joined:
            # A join without an answer holds its connection up: the broker would read what follows after it.
            await self._disconnect()
        if self._member_id and (error := await bounded(self._leave(), CLOSE_TIMEOUT_S)):
            logger.warning("could not leave group %s: %r", self._settings.group_id, error)
        await self._disconnect()

    async def _leave(self) -> None:
        if self._at is None:
            self._at = await self._connect()
        await self._ask(LeaveGroupRequest(self._settings.group_id, self._member_id), CLOSE_TIMEOUT_S)

    async def _take_part(self) -> None:
        if self._at is None:
            self._at = await self._connect()
        if not self._joined:
            await self._join()
        if self._silent:
            logger.warning("group %s answers again", self._settings.group_id)
            self._silent = False
        await asyncio.sleep(self._settings.heartbeat_interval_s)
        beat = HeartbeatRequest(self._settings.group_id, self._generation, self._member_id)
        # An answer that does not come in time is as good as none: the session may be over.
        patience_s = min(self._connection.request_timeout_s, self._settings.session_timeout_s / 2)
        self._check((await self._ask(beat, patience_s)).error_code)

    async def _connect(self) -> _Coordinator:
        # A join is answered when all members have joined: the client itself must be more patient than that.
        patience_ms = int((self._join_timeout_s + self._connection.request_timeout_s) * 1000)
        options = self._connection.client_options() | {"request_timeout_ms": patience_ms}
        client = AIOKafkaClient(**options, client_id="streamtrain-failover")
        try:
            async with asyncio.timeout(self._connection.request_timeout_s):
                await bootstrap(client, options)
                node = await client.coordinator_lookup(CoordinationType.GROUP, self._settings.group_id)
                # The first answer names the coordinator; whether it is known by address is another matter.
                await client.force_metadata_update()
        except BaseException:
            await bounded(client.close(), CLOSE_TIMEOUT_S)
            raise
        return _Coordinator(client, node)

    async def _disconnect(self) -> None:
        at, self._at = self._at, None
        if at is not None:
            await bounded(at.client.close(), CLOSE_TIMEOUT_S)

    @property
    def _join_timeout_s(self) -> float:
        # The broker waits for the slowest member up to the rebalance timeout, which is the session's, then answers.
        return self._settings.session_timeout_s + self._connection.request_timeout_s

    async def _join(self) -> None:
        """Joins, decides where this member is the leader, and acts on the verdict."""
        timeout_ms = int(self._settings.session_timeout_s * 1000)
        claim = Claim(self._candidate.model_id, self._candidate.name, self._candidate.epoch(), self._term)
        request = JoinGroupRequest(
            self._settings.group_id,
            timeout_ms,
            timeout_ms,
            self._member_id,
            None,
            ConsumerProtocol.PROTOCOL_TYPE,
            [(PROTOCOL, encode_claim(claim, self._topic))],
        )
        answer = await self._ask(request, self._join_timeout_s)
        if for_code(answer.error_code) is MemberIdRequired:
            self._member_id = answer.member_id
            raise _Rejoin("it has a member id now")
        self._check(answer.error_code)
        self._member_id, self._generation = answer.member_id, answer.generation_id
        leads = answer.leader_id == answer.member_id
        decided = await self._decide(answer.members) if leads else []
        sync = SyncGroupRequest(self._settings.group_id, self._generation, self._member_id, None, decided)
        answer = await self._ask(sync, self._join_timeout_s)
        self._check(answer.error_code)
        self._joined = True
        self._hear(decode_verdict(answer.member_assignment))

    async def _decide(self, members: Iterable[tuple[Any, ...]]) -> list[tuple[str, bytes]]:
        """The assignments of all members: the owner has every partition."""
        claims = {member[0]: decode_claim(member[-1]) for member in members}
        verdict = elect(claims)
        assert verdict is not None, "this member's own claim is among them"
        partitions = await self._partitions()
        return [
            (member, encode_verdict(verdict, self._topic, partitions if member == verdict.member_id else ()))
            for member in claims
        ]

    async def _partitions(self) -> tuple[int, ...]:
        """The topic's partitions, for people who look with Kafka's tools; the daemon reads whatever there are."""
        assert self._at is not None
        try:
            async with asyncio.timeout(self._connection.request_timeout_s):
                topic = await describe_topic(self._at.client, self._topic)
        except _TROUBLE as error:
            logger.debug("the partitions of %s are not known: %r", self._topic, error)
            return ()
        return () if topic is None else topic.partitions

    def _hear(self, verdict: Verdict | None) -> None:
        if verdict is None:
            logger.warning(
                "the leader of group %s speaks another version: this daemon stands by",
                self._settings.group_id,
            )
        elif verdict.model_id != self._candidate.model_id:
            raise ConfigError(
                f"failover.group_id = {self._settings.group_id!r}: {verdict.name} has model {verdict.model_id} in this "
                f"group, this daemon has {self._candidate.model_id}: let all daemons of a model share one log.path (is "
                "the file system mounted?), and give each model a group of its own"
            )
        elif verdict.member_id == self._member_id:
            if self._term < 0:
                self._term = self._generation
            self.owned.set()
        elif not self.owned.is_set():
            if verdict.name != self._owner:
                logger.info(
                    "standing by in group %s: %s owns the model", self._settings.group_id, verdict.name
                )
            self._owner = verdict.name
        elif not self.successor.done():
            self.successor.set_result(verdict.name)

    async def _ask(self, request: Any, timeout_s: float) -> Any:
        assert self._at is not None
        async with asyncio.timeout(timeout_s):
            return await self._at.client.send(self._at.node, request, group=ConnectionGroup.COORDINATION)

    def _check(self, code: int) -> None:
        """Raises what an answer's error code means."""
        error = for_code(code)
        if error is NoError:
            return
        if issubclass(error, _EVICTED):
            # The epoch and the term that this member claims outlive its member id.
            self._member_id = ""
            raise _Rejoin(error.__name__)
        if error is RebalanceInProgressError:
            raise _Rejoin("it forms anew")
        raise error(self._settings.group_id)

    def _refuse(self, error: BaseException) -> None:
        """Raises where trying again does not help."""
        group, seconds = self._settings.group_id, self._settings.session_timeout_s
        match error:
            case InvalidSessionTimeoutError():
                raise ConfigError(
                    f"failover.session_timeout_s = {seconds:g}: the broker does not allow it; choose one between its "
                    "group.min.session.timeout.ms (6 s unless changed) and group.max.session.timeout.ms"
                ) from error
            case InconsistentGroupProtocolError():
                raise ConfigError(
                    f"failover.group_id = {group!r}: the group has members that are no daemons of this model, or of "
                    "another version; choose a group that nothing else uses"
                ) from error
            case InvalidGroupIdError():
                raise ConfigError(
                    f"failover.group_id = {group!r}: the broker does not allow this name"
                ) from error
            case GroupAuthorizationFailedError():
                raise SourceError(
                    f"Kafka does not allow this user to join group {group!r}: grant READ on it to "
                    f"{self._connection.sasl_username or 'this client'}"
                ) from error
