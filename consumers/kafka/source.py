"""The Kafka source as the daemon sees it: its methods run on the daemon's loop, the client's on one of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

from consumers.handover import Handover
from consumers.kafka.diagnosis import diagnose
from consumers.kafka.group import GroupMember
from consumers.kafka.loop_thread import LoopThread
from consumers.kafka.ownership import KafkaOwnership
from consumers.kafka.reader import Reader
from consumers.kafka.settings import KafkaSettings
from consumers.kafka.spans import SpanReader
from streamtrain.findings import Finding, Resumption
from streamtrain.ownership import Candidate, FailoverSettings
from streamtrain.sources import Chunk, DataLoss, Positions

__all__ = ["KafkaSource"]

_T = TypeVar("_T")


class KafkaSource:
    """Reads all partitions of a topic: read_committed, at positions that the epoch log decides.

    The client runs in a thread with its own event loop, so that neither waits for the other. Between the two is a
    buffer bounded in records and bytes; while it is full nothing is polled, and then nothing is fetched.

    `read` raises `SourceUnavailable` when Kafka has been silent for `unavailable_after_s`, goes on trying, and may be
    called again. Its other errors are final.
    """

    Settings = KafkaSettings
    sequential = False

    def __init__(self, settings: KafkaSettings, *, until_end: bool = False) -> None:
        self._settings = settings
        self._handover = Handover(
            settings.buffer_records_max,
            settings.buffer_bytes_max,
            self._on_room,
            settings.chunk_records_max,
        )
        self._reader = Reader(settings, self._handover, until_end=until_end)
        self._spans = SpanReader(settings)
        self._thread: LoopThread | None = None
        self._read_positions: dict[str, int] = {}

    @property
    def identity(self) -> str:
        """The topic's id, which changes when it is deleted and created again; "" with brokers before Kafka 2.8."""
        return self._reader.identity

    @property
    def mirror_failures(self) -> int:
        """How many commits of group offsets have failed."""
        return self._reader.mirror_failures

    def use_columns(self, columns: Sequence[str]) -> None:
        """Kafka's records come whole."""

    async def start(self, positions: Positions | None, identity: str = "") -> dict[str, int]:
        """Connects, checks the positions against the topic, and begins to read ahead. See `Source.start`."""
        self._read_positions = await self._call(self._reader.open(positions, identity))
        await self._call(self._reader.begin())
        return dict(self._read_positions)

    async def read(self) -> Chunk | DataLoss | None:
        """The next chunk. See `Source.read`."""
        found = await self._handover.get()
        if isinstance(found, Chunk):
            self._read_positions[found.partition] = found.next
        elif found is not None:
            for gap in found.gaps:
                self._read_positions.pop(gap.partition, None)
                if gap.next is not None:
                    self._read_positions[gap.partition] = gap.next
        return found

    async def read_span(self, partition: str, first: int, next: int) -> list[Chunk]:
        """Reads records again, with a consumer of its own. See `Source.read_span`."""
        return await self._call(self._spans.read(partition, first, next))

    async def committed(self, positions: Positions) -> None:
        """Mirrors positions to the consumer group in the background, at most every `mirror_interval_s`."""
        if self._thread is not None:
            self._thread.soon(self._reader.mirror, dict(positions))

    def ownership(self, settings: FailoverSettings, candidate: Candidate) -> KafkaOwnership:
        """A place in the group that elects the owner. See `TellsOwnership`."""
        return KafkaOwnership(partial(GroupMember, self._settings, self._settings.topic, settings, candidate))

    @staticmethod
    async def diagnose(settings: KafkaSettings, resumption: Resumption) -> list[Finding]:
        """What `streamtrain doctor` asks: nothing is learned, committed or created."""
        return await diagnose(settings, resumption)

    def lag_records(self) -> dict[str, int]:
        """By partition, offsets between the last one read and the newest known end; control records count too."""
        ends = self._reader.ends
        return {name: max(0, ends.get(name, 0) - position) for name, position in self._read_positions.items()}

    async def close(self) -> None:
        """Stops reading, mirrors the last positions, disconnects and ends the thread. Safe to call twice."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        try:
            await thread.call(self._spans.close())
            await thread.call(self._reader.close())
        finally:
            await asyncio.to_thread(thread.stop)

    async def _call(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        if self._thread is None:
            self._thread = LoopThread("kafka")
        return await self._thread.call(coroutine)

    def _on_room(self) -> None:
        if self._thread is not None:
            self._thread.soon(self._reader.room.set)
