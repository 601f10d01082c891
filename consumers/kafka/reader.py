"""Reads a topic without end, on the Kafka client's own loop: opens, polls, watches, mirrors, opens again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import numpy as np
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    KafkaError,
    OffsetOutOfRangeError,
    RecordTooLargeError,
    TopicAuthorizationFailedError,
)

from consumers.handover import Handover
from consumers.kafka.positions import (
    BeyondEnd,
    check_identity,
    number_of,
    partition_name,
    seek_offsets,
    skip_offsets,
)
from consumers.kafka.session import CLOSE_TIMEOUT_S, Session, bounded
from consumers.kafka.settings import KafkaSettings, StartAt
from consumers.kafka.topics import Topic
from streamtrain.errors import OffsetOutOfRange, PartitionMissing, SourceError, SourceUnavailable
from streamtrain.sources import Chunk, DataLoss, Gap, Positions

__all__ = ["TROUBLE", "Reader", "cut", "patiently"]

logger = logging.getLogger(__name__)

TROUBLE = (KafkaError, OSError, TimeoutError)
"""What the client raises when brokers do not answer."""

_REFUSED = (TopicAuthorizationFailedError, GroupAuthorizationFailedError)
_POLL_S = 0.2
_BACKOFF_FIRST_S, _BACKOFF_MAX_S = 0.25, 5.0
# A leader that was just elected may not know its end yet, and a metadata cache may lag behind a new topic.
_LOOKS, _LOOK_PAUSE_S = 5, 0.5

_T = TypeVar("_T")


class _Reopen(Exception):
    """Reading goes on with a new connection, which seeks anew."""


class Reader:
    """Fills a handover from a topic. Every coroutine runs on the Kafka client's loop.

    Args:
      settings: which topic, and the bounds.
      handover: where chunks and errors go.
      until_end: stop at the end that the topic has when `open` is called.

    Attributes:
      identity: the topic's id; "" before `open` and where brokers do not tell.
      ends: by partition name, the newest known end.
      mirror_failures: commits of group offsets that failed.
    """

    def __init__(self, settings: KafkaSettings, handover: Handover, *, until_end: bool) -> None:
        self._settings, self._handover, self._until_end = settings, handover, until_end
        self.room = asyncio.Event()
        self.identity = ""
        self.ends: dict[str, int] = {}
        self.mirror_failures = 0
        self._task: asyncio.Task[None] | None = None
        self._session: Session | None = None
        self._next: dict[int, int] = {}
        self._stops: dict[int, int] = {}
        self._added: dict[int, int] = {}
        self._to_mirror: dict[int, int] = {}
        self._mirror_due = asyncio.Event()

    async def open(self, positions: Positions | None, identity: str) -> dict[str, int]:
        """Connects, checks that the positions fit the topic, and seeks.

        Raises:
          OffsetOutOfRange, PartitionMissing, SourceRecreated, SourceUnavailable.
        """
        self.identity = identity
        known = (
            None
            if positions is None
            else {number_of(p, self._settings.topic): n for p, n in positions.items()}
        )
        session = await self._connect()
        self._session = session
        self._next = await self._patiently(lambda: self._seek(session, known))
        if self._until_end:
            self._stops = await self._patiently(lambda: session.end(self._next))
            self._note_ends(self._stops)
        return {self._name(number): offset for number, offset in self._next.items()}

    async def begin(self) -> None:
        """Begins to read, after `open`, until the end (where `until_end`), a final error, or `close`."""
        self._task = asyncio.create_task(self._run(), name="kafka-reader")

    async def _run(self) -> None:
        try:
            while True:
                try:
                    session = self._session or await self._reopen()
                    if await self._read(session):
                        self._handover.end()
                        return
                except _Reopen as reason:
                    logger.warning("%s; connecting anew", reason)
                    await asyncio.sleep(_LOOK_PAUSE_S)
                except SourceUnavailable as error:
                    logger.warning("%s; trying on", error)
                    self._handover.fail(error, final=False)
                await self._drop_session()
        except asyncio.CancelledError:
            # Harmless from `close`, after which nobody reads. From anywhere else it must not pass in silence.
            self._handover.fail(
                SourceError(f"reading topic {self._settings.topic!r} was cancelled"), final=True
            )
            raise
        except Exception as error:
            # Whatever it is, the one who reads must hear of it: a dead reader looks like a quiet topic.
            self._handover.fail(error, final=True)
            if not isinstance(error, SourceError):
                logger.exception("reading topic %s failed", self._settings.topic)

    async def close(self) -> None:
        """Stops reading, mirrors what is left and disconnects. Bounded by a few CLOSE_TIMEOUT_S."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._session is not None and self._to_mirror:
            await self._mirror_once(self._session)
        await self._drop_session()

    def mirror(self, positions: Positions) -> None:
        """Notes what to commit as group offsets; the newest positions win."""
        if self._settings.group_id is not None:
            self._to_mirror.update({number_of(p, self._settings.topic): n for p, n in positions.items()})
            self._mirror_due.set()

    async def _read(self, session: Session) -> bool:
        """Reads until the end (True) or until the connection is given up (SourceUnavailable)."""
        helpers = [asyncio.create_task(self._watch(session), name="kafka-watch")]
        if self._settings.group_id is not None:
            helpers.append(asyncio.create_task(self._mirror(session), name="kafka-mirror"))
        pump = asyncio.create_task(self._pump(session), name="kafka-pump")
        try:
            await asyncio.wait([pump, *helpers], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (pump, *helpers):
                task.cancel()
            results = await asyncio.gather(pump, *helpers, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
        return True

    async def _pump(self, session: Session) -> None:
        """Polls while the handover has room. Returns at the end of every partition."""
        troubles = 0
        while True:
            self._apply_added(session)
            if self._until_end and self._all_ended(session):
                return
            await self._wait_for_room()
            try:
                chunks = await session.poll(self._settings.chunk_records_max, _POLL_S)
            except KafkaError as error:
                troubles += 1
                await self._recover(error, troubles)
                continue
            for chunk in chunks:
                troubles = 0
                self._hand_over(session, chunk)

    async def _wait_for_room(self) -> None:
        while not self._handover.has_room():
            self.room.clear()
            # Looked at again: the room may have come before the event was cleared.
            if not self._handover.has_room():
                await self.room.wait()

    async def _recover(self, error: KafkaError, troubles: int) -> None:
        """Polling failed and no position has moved: tries again where that may help, otherwise says what is wrong."""
        if isinstance(error, _REFUSED):
            raise self._refused(error) from error
        if isinstance(error, RecordTooLargeError):
            raise SourceError(f"{error}; raise source.partition_fetch_bytes_max") from error
        if troubles >= _LOOKS:
            raise SourceError(f"topic {self._settings.topic!r} cannot be read: {error!r}") from error
        if isinstance(error, OffsetOutOfRangeError) or type(error) is KafkaError:
            # Seeking decides whether records are gone. Not on this connection: where a consumer with a group is assigned
            # anew while it still looks for the group's coordinator, aiokafka gives up with a bare KafkaError.
            raise _Reopen(f"reading topic {self._settings.topic!r} failed: {error!r}") from error
        logger.warning("reading topic %s failed, trying again: %r", self._settings.topic, error)
        # A damaged batch, mostly: fetching again helps if the wire was at fault.
        await asyncio.sleep(_LOOK_PAUSE_S)

    def _apply_added(self, session: Session) -> None:
        """Begins with the partitions that the watch has found, between two polls."""
        added, self._added = self._added, {}
        if new := {number: offset for number, offset in added.items() if number not in self._next}:
            self._next |= new
            session.assign(self._next)

    def _hand_over(self, session: Session, chunk: Chunk) -> None:
        number = number_of(chunk.partition, self._settings.topic)
        if self._until_end:
            chunk = cut(chunk, self._stops[number])
        self._next[number] = chunk.next
        self._note_ends({number: max(session.known_end(number), chunk.next)})
        self._handover.put(chunk)

    def _all_ended(self, session: Session) -> bool:
        """Stops fetching partitions that have reached their end; says whether all have."""
        self._stops = {number: stop for number, stop in self._stops.items() if self._next[number] < stop}
        for number in session.reading - self._stops.keys():
            session.pause(number)
        return not self._stops

    async def _watch(self, session: Session) -> None:
        """Looks now and then whether the topic is still the same, has new partitions, and where it ends."""
        while True:
            await asyncio.sleep(self._settings.metadata_refresh_s)
            await self._patiently(lambda: self._look(session))

    async def _look(self, session: Session) -> None:
        topic = await self._topic(session)
        if self._is_another(topic):
            # Positions in the old one mean nothing: the pump is ended, and reading begins anew.
            raise _Reopen(f"topic {self._settings.topic!r} was deleted and created again")
        self.identity = topic.id or self.identity
        self._note_ends(await session.end(n for n in topic.partitions if n in self._next))
        new = [n for n in topic.partitions if n not in self._next and n not in self._added]
        if new and not self._until_end:
            # Nothing of a new partition was learned, so it is read from its beginning.
            self._added |= await session.begin(new)
            logger.info("topic %s has %d new partitions", self._settings.topic, len(new))

    async def _mirror(self, session: Session) -> None:
        while True:
            await self._mirror_due.wait()
            await self._mirror_once(session)
            await asyncio.sleep(self._settings.mirror_interval_s)

    async def _mirror_once(self, session: Session) -> None:
        self._mirror_due.clear()
        offsets = dict(self._to_mirror)
        if error := await bounded(session.commit(offsets), CLOSE_TIMEOUT_S):
            # A mirror for lag tools: what fails here is repaired by the next commit, and nothing reads it back.
            self.mirror_failures += 1
            logger.warning("could not mirror positions to group %s: %r", self._settings.group_id, error)
            return
        self._to_mirror = {n: offset for n, offset in self._to_mirror.items() if offsets.get(n) != offset}

    async def _seek(self, session: Session, known: Mapping[int, int] | None) -> dict[int, int]:
        """Decides where to read from and assigns it; returns the next offset to hand over by partition."""
        for look in range(_LOOKS):
            topic = await self._topic(session)
            begin, end = await session.begin(topic.partitions), await session.end(topic.partitions)
            if known is None:
                known = await self._first_positions(session, topic, begin, end)
            gaps: tuple[Gap, ...] = ()
            try:
                if self._is_another(topic):
                    offsets, gaps = self._skip(known, begin, end, recreated=True)
                else:
                    offsets = seek_offsets(self._settings.topic, known, begin, end)
            except BeyondEnd:
                if look < _LOOKS - 1:
                    await asyncio.sleep(_LOOK_PAUSE_S)
                    continue
                if not self._skips:
                    raise
                offsets, gaps = self._skip(known, begin, end)
            except (OffsetOutOfRange, PartitionMissing):
                if not self._skips:
                    raise
                offsets, gaps = self._skip(known, begin, end)
            # From here on nothing waits: the identity, the positions and the word of a loss change together.
            self.identity = topic.id or self.identity
            self._note_ends(end)
            session.assign(offsets)
            if gaps:
                self._tell(gaps, end)
            return offsets
        raise AssertionError("unreachable")

    @property
    def _skips(self) -> bool:
        return self._settings.on_data_loss == "skip"

    def _is_another(self, topic: Topic) -> bool:
        return bool(self.identity and topic.id and self.identity != topic.id)

    def _skip(
        self, known: Mapping[int, int], begin: dict[int, int], end: dict[int, int], *, recreated: bool = False
    ) -> tuple[dict[int, int], tuple[Gap, ...]]:
        return skip_offsets(self._settings.topic, known, begin, end, recreated=recreated)

    def _tell(self, gaps: tuple[Gap, ...], end: Mapping[int, int]) -> None:
        """Says behind the last chunk handed over that what follows is not what would have come next."""
        for gap in gaps:
            goes_on = "is not read any more" if gap.next is None else f"goes on at offset {gap.next}"
            logger.error(
                "records are lost (%s): %s stood at %d and %s", gap.reason, gap.partition, gap.first, goes_on
            )
        if self._until_end:
            self._stops = dict(end)
        # What the group would be told of positions in another topic means nothing, and may fail for ever.
        self._to_mirror.clear()
        self._added.clear()
        self._handover.put_loss(DataLoss(gaps, self.identity, time.time_ns() // 1_000_000))

    async def _first_positions(
        self, session: Session, topic: Topic, begin: dict[int, int], end: dict[int, int]
    ) -> dict[int, int]:
        start = self._settings.start
        if isinstance(start, StartAt):
            return await session.at_time(topic.partitions, start.timestamp_ms)
        return begin if start == "earliest" else end

    async def _topic(self, session: Session) -> Topic:
        """The topic, checked to be the one that positions belong to."""
        name = self._settings.topic
        for look in range(_LOOKS):
            if look:
                await asyncio.sleep(_LOOK_PAUSE_S)
            topic = await session.topic()
            if topic is not None and topic.partitions:
                if not self._skips:
                    check_identity(name, self.identity, topic.id)
                return topic
        raise PartitionMissing(
            f"topic {name!r} does not exist at {self._settings.bootstrap_servers}: check source.topic, or create it with "
            f"kafka-topics.sh --bootstrap-server {self._settings.bootstrap_servers} --create --topic {name} --partitions 4"
        )

    async def _connect(self) -> Session:
        async def connect() -> Session:
            session = Session(self._settings, group_id=self._settings.group_id)
            try:
                await session.open()
            except BaseException:
                await session.close()
                raise
            return session

        return await self._patiently(connect)

    async def _reopen(self) -> Session:
        """A new connection, which finds brokers that have moved, at the positions reached."""
        session = self._session = await self._connect()
        at = dict(self._next)
        self._next = await self._patiently(lambda: self._seek(session, at))
        logger.info("reading topic %s again", self._settings.topic)
        return session

    async def _drop_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _patiently(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        try:
            return await patiently(attempt, self._settings)
        except _REFUSED as error:
            raise self._refused(error) from error

    def _refused(self, error: KafkaError) -> SourceError:
        what = "group" if isinstance(error, GroupAuthorizationFailedError) else "topic"
        name = self._settings.group_id if what == "group" else self._settings.topic
        return SourceError(
            f"Kafka does not allow this user to read {what} {name!r}: grant READ and DESCRIBE on it to "
            f"{self._settings.sasl_username or 'this client'}"
        )

    def _note_ends(self, ends: Mapping[int, int]) -> None:
        # A new dict each time: the daemon's thread reads it.
        self.ends = self.ends | {self._name(number): end for number, end in ends.items()}

    def _name(self, number: int) -> str:
        return partition_name(self._settings.topic, number)


async def patiently(attempt: Callable[[], Awaitable[_T]], settings: KafkaSettings) -> _T:
    """Tries until it works, with growing pauses, for `unavailable_after_s`.

    Raises:
      SourceUnavailable: Kafka did not answer for so long.
      KafkaError: it answered that this user may not.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + settings.unavailable_after_s
    pause = _BACKOFF_FIRST_S
    told: BaseException | None = None
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                return await attempt()
        except _REFUSED:
            raise
        except TROUBLE as error:
            # Our deadline may end an attempt whose forerunner knew more.
            told = told if told is not None and isinstance(error, TimeoutError) else error
            if loop.time() + pause >= deadline:
                raise SourceUnavailable(
                    f"Kafka at {settings.bootstrap_servers} has not answered for {settings.unavailable_after_s:g} s "
                    f"({str(told) or type(told).__name__}): check source.bootstrap_servers, the network and the brokers"
                ) from error
        await asyncio.sleep(pause)
        pause = min(2 * pause, _BACKOFF_MAX_S)


def cut(chunk: Chunk, stop: int) -> Chunk:
    """The part of a chunk before offset `stop`."""
    if chunk.next <= stop:
        return chunk
    count = int(np.searchsorted(chunk.offsets, stop))
    return Chunk(
        chunk.partition,
        chunk.first,
        stop,
        chunk.offsets[:count],
        chunk.times_ms[:count],
        chunk.records[:count],
        None if chunk.keys is None else chunk.keys[:count],
    )
