"""The contract between the daemon and a source of samples. `consumers/` implements it; so may anyone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from streamtrain.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "TIME_UNKNOWN",
    "Chunk",
    "DataLoss",
    "Gap",
    "OnDataLoss",
    "Positions",
    "Source",
    "SourceSettings",
    "Span",
]

TIME_UNKNOWN = -1
"""The time of a record that has none: its event time stands for it."""

Positions = Mapping[str, int]
"""Where reading resumes: by partition, the next offset to read. Of that record some leaves may have been learned: a
source begins with the whole record, and the daemon leaves out those."""


OnDataLoss = Literal["stop", "skip"]
"""What a source does where records that were never learned are gone: raise, or go on behind the gap and say so."""


@dataclass(frozen=True, slots=True)
class Span:
    """What a minibatch took of a partition, which held `samples` good samples.

    It goes from leaf `first_leaf` of record `first` to before leaf `next_leaf` of record `next`; 0 is where a record
    begins, and where records hold one sample each both are 0. Offsets in between may be missing (transactions,
    compaction); what is bad is inside the span but not counted.
    """

    partition: str
    first: int
    next: int
    samples: int
    first_leaf: int = 0
    next_leaf: int = 0

    @staticmethod
    def of(partition: str, begin: tuple[int, int], end: tuple[int, int], samples: int) -> Span:
        """From (offset, leaf) to (offset, leaf)."""
        return Span(partition, begin[0], end[0], samples, begin[1], end[1])

    @property
    def begin(self) -> tuple[int, int]:
        """(offset, leaf) of where it begins."""
        return self.first, self.first_leaf

    @property
    def end(self) -> tuple[int, int]:
        """(offset, leaf) of what comes next."""
        return self.next, self.next_leaf

    @property
    def next_record(self) -> int:
        """The offset behind the last record of which it holds anything."""
        return self.next + (self.next_leaf > 0)

    def holds(self, offset: int, leaf: int | None) -> bool:
        """Whether a leaf is in it; None: a record as a whole, which is where the record ends."""
        if leaf is None:
            return self.first <= offset < self.next
        return self.begin <= (offset, leaf) < self.end


@dataclass(frozen=True, slots=True)
class Chunk:
    """A run of undecoded records of one partition, in order.

    Attributes:
      partition: Kafka: `topic:number`; files: the path as the settings' folder sees it.
      first: where the chunk begins; the `next` of the chunk of that partition before it.
      next: the next offset to read after it; larger than the last offset + 1 where records are missing.
      offsets: `[n]` int64, each record's offset (a file's row number).
      times_ms: `[n]` int64, each record's time in milliseconds since 1970; TIME_UNKNOWN where it has none.
      records: n payloads as bytes (None for a null record), or an Arrow table of n rows.
      keys: n keys as bytes (None for a record without one); None where the source has no keys.
    """

    partition: str
    first: int
    next: int
    offsets: NDArray[np.int64]
    times_ms: NDArray[np.int64]
    records: Sequence[bytes | None] | pa.Table
    keys: Sequence[bytes | None] | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """A partition whose next record is not the one that comes next.

    Attributes:
      partition: which.
      first: where reading stood.
      next: where it goes on: after `first` where retention has deleted records, before it where the partition is another
        one or has shrunk; None where there is no such partition any more.
      reason: `retention`, `recreated`, `shrunk` or `removed`.
    """

    partition: str
    first: int
    next: int | None
    reason: str

    @property
    def lost(self) -> int:
        """How many offsets were lost for certain; 0 where nobody can tell, in a partition that is another one."""
        return 0 if self.next is None else max(0, self.next - self.first)


@dataclass(frozen=True, slots=True)
class DataLoss:
    """Records that were never learned are gone, and the source was told to go on (`on_data_loss = "skip"`).

    It stands between the chunks of a source: every chunk before it belongs to the positions before the loss.

    Attributes:
      gaps: what moves, each partition once; other partitions go on where they are.
      identity: the source's `identity` from here on.
      at_ms: when it was noticed, milliseconds since 1970.
    """

    gaps: tuple[Gap, ...]
    identity: str
    at_ms: int


class SourceSettings(Settings):
    """What every source's settings have. A plug-in's own `Settings` class extends it."""

    kind: str
    """Which consumer plug-in reads the samples: `kafka`, `files`, or a third party's."""
    codec: str = "json"
    """How a record that arrives as bytes becomes samples: `json` (one, or a tree), `arrow` (an IPC stream of many rows), or a
    third party's codec."""
    leaves_max: int = Field(default=65_536, ge=1, le=1 << 24)
    """A record with more samples is refused."""


class Source(Protocol):
    """Reads chunks, resumes at positions, reads a span again. All methods run on the daemon's loop.

    A class with this shape is registered under the entry-point group `streamtrain.consumers`. It has a class
    attribute `Settings` (a `SourceSettings`) and is made by `cls(settings, until_end=False)`. It may have a coroutine
    `diagnose(settings, resumption)`, static, that returns `Finding`s for `streamtrain doctor` (`streamtrain/findings.py`).

    Attributes:
      sequential: True where partitions follow one another (files): only the one being read has a position.
      identity: after `start`, what tells this incarnation of the source from another of the same name (Kafka: the
        topic's id); "" where there is no such thing.
    """

    def __init__(self, settings: Any, *, until_end: bool = False) -> None: ...

    # Properties, so that a class attribute of a narrower type fits too.
    @property
    def Settings(self) -> type[SourceSettings]: ...

    @property
    def sequential(self) -> bool: ...

    @property
    def identity(self) -> str: ...

    def use_columns(self, columns: Sequence[str]) -> None:
        """Is told, before `start`, which fields samples read: a columnar format reads no others."""
        ...

    async def start(self, positions: Positions | None, identity: str = "") -> dict[str, int]:
        """Connects and seeks. `None` means a new model: the settings say where it begins.

        Where it skips lost records, the first thing that `read` gives is the `DataLoss`.

        Args:
          positions: where to resume, as the log has them.
          identity: the source's `identity` when the positions were made; "" where it is not known.

        Returns:
          The positions that reading starts at.

        Raises:
          OffsetOutOfRange, PartitionMissing, SourceRecreated, SourceUnavailable.
        """
        ...

    async def read(self) -> Chunk | DataLoss | None:
        """Waits for the next chunk (bounded in records and bytes), or word that records before the next one are lost.

        None: the end, only where `until_end`.

        Cancelling it loses nothing. It applies back-pressure: what is not read is not fetched without bound.
        A chunk may hold no record at all: it then moves the position over offsets that hold none.

        Raises: as `start`. After `SourceUnavailable` the source goes on trying, and `read` may be called again;
          the others are final.
        """
        ...

    async def read_span(self, partition: str, first: int, next: int) -> list[Chunk]:
        """Reads records `first` to `next` (exclusive) again, for replay, whatever `start` and `read` did.

        Raises: as `start`; OffsetOutOfRange where a part of the span is gone.
        """
        ...

    async def committed(self, positions: Positions) -> None:
        """Is told of positions after the epoch that holds them is durable. Best effort, never raises SourceError."""
        ...

    def lag_records(self) -> dict[str, int]:
        """By partition, the records between the last one read and the newest known. May be empty."""
        ...

    async def close(self) -> None:
        """Stops reading and releases everything. Safe to call twice."""
        ...
