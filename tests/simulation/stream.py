"""What there is to learn: partitions with gaps and bad records, written while the world runs; and a source that reads it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from random import Random

import numpy as np

from streamtrain.errors import BadSample
from streamtrain.samples.batch import Ragged, SampleBatch
from streamtrain.samples.decoded import DecodedChunk
from streamtrain.sources import Span
from tests.simulation.scheduler import Scheduler

__all__ = ["HOT_IDS", "Record", "SimulatedSource", "Stream"]

HOT_IDS = 5
"""Ids of the table `hot`, which all samples share."""

_START = 100
_GROUPED_SHARE = 0.35
_DAY_MS = 86_400_000
_offset = attrgetter("offset")


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a partition.

    Attributes:
      leaves: of each leaf the sample's own id, None where it is none; or None for a record that is refused whole.
      at: when it is written, in seconds of the world.
    """

    offset: int
    leaves: tuple[int | None, ...] | None
    at: float


@dataclass
class Stream:
    """All records, immutable but for time.

    Attributes:
      sequential: partitions follow one another, as files do.
      partitions: by name, the records in order of offset.
      begins: by name, the first offset.
      ends: by name, the offset behind the last record or gap.
    """

    sequential: bool
    partitions: dict[str, list[Record]] = field(default_factory=dict)
    begins: dict[str, int] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)

    @staticmethod
    def make(random: Random, begin: float, seconds: float) -> Stream:
        """A few partitions of a few dozen records, spread over `seconds`."""
        stream = Stream(sequential=random.random() < 0.25)
        sample = 1
        for number in range(random.randint(1, 3)):
            name = f"part:{number}"
            offset = stream.begins[name] = random.choice([0, _START])
            # A partition may be added while the model lives.
            at = begin + (random.random() * seconds / 2 if number else 0)
            records = stream.partitions[name] = []
            count = random.randint(5, 18)
            for _ in range(count):
                if random.random() < 0.15:
                    offset += random.randint(1, 3)  # aborted, compacted
                at += random.random() * seconds / count
                bad = random.random() < 0.1
                records.append(Record(offset, None if bad else (sample,), at))
                sample += not bad
                offset += 1
            stream.ends[name] = offset + random.choice([0, 0, 2])
        # Dice of their own, so that all else in a world is as it would be without leaves.
        dice = Random(repr(stream.ends))
        if dice.random() < _GROUPED_SHARE:
            stream._group(dice)
        return stream

    def _group(self, dice: Random) -> None:
        """Gives each record some leaves, now and then none; some are refused."""
        sample = 1
        for records in self.partitions.values():
            for place, record in enumerate(records):
                if record.leaves is None:
                    continue
                kinds = [dice.random() < 0.9 for _ in range(dice.choice([0, 1, 2, 3, 5, 9]))]
                leaves = tuple(sample + sum(kinds[:i]) if good else None for i, good in enumerate(kinds))
                records[place] = replace(record, leaves=leaves)
                sample += sum(kinds)

    @property
    def samples(self) -> int:
        """How many samples there are; their ids are 1 to that."""
        return sum(
            leaf is not None
            for records in self.partitions.values()
            for record in records
            for leaf in record.leaves or ()
        )

    def leaves(self, span: Span) -> Iterator[int | None]:
        """What a span holds: ids of samples, and None for each leaf or record that is refused."""
        for record in self.span(span.partition, span.first, span.next_record):
            if record.leaves is None:
                yield from [None] * span.holds(record.offset, None)
            for leaf, sample in enumerate(record.leaves or ()):
                if span.holds(record.offset, leaf):
                    yield sample

    def span(self, partition: str, first: int, next_: int) -> Iterator[Record]:
        """The records from `first` to `next_` (exclusive)."""
        records = self.partitions[partition]
        return iter(
            records[bisect_left(records, first, key=_offset) : bisect_left(records, next_, key=_offset)]
        )


class SimulatedSource:
    """Reads a stream from positions on, in chunks that the dice cut."""

    identity = "stream"

    def __init__(self, stream: Stream, scheduler: Scheduler) -> None:
        self._stream, self._scheduler = stream, scheduler
        self.sequential = stream.sequential
        self._at: dict[str, int] = {}

    def start(self, positions: Mapping[str, int] | None) -> dict[str, int]:
        """Seeks; see `Source.start`."""
        names = list(self._stream.partitions)
        if self.sequential:
            here = names[0] if not positions else next(iter(positions))
            names = names[names.index(here) :]
        given = positions or {}
        self._at = {name: given.get(name, self._stream.begins[name]) for name in names}
        if positions is not None:
            return dict(positions)
        first = dict(list(self._at.items())[:1])
        return (
            first if self.sequential else dict(self._at) if self._scheduler.random.random() < 0.5 else first
        )

    def read(self) -> DecodedChunk | None:
        """The next chunk, decoded; None at the end of everything. Waits for records to be written."""
        while True:
            waiting = [name for name, at in self._at.items() if at < self._stream.ends[name]]
            if not waiting:
                return None
            waiting = waiting[:1] if self.sequential else waiting
            there = {name: records for name in waiting if (records := self._written(name)) is not None}
            if there:
                return self._chunk(there)
            self._scheduler.sleep(min(map(self._next_at, waiting)) - self._scheduler.now)

    def _next_at(self, name: str) -> float:
        return next(self._stream.span(name, self._at[name], self._stream.ends[name])).at

    def _written(self, name: str) -> list[Record] | None:
        """Records of `name` that are there to read; [] where only a gap is left, None where it is to be waited for."""
        left = list(self._stream.span(name, self._at[name], self._stream.ends[name]))
        return [record for record in left if record.at <= self._scheduler.now] or (None if left else [])

    def _chunk(self, there: Mapping[str, list[Record]]) -> DecodedChunk:
        random = self._scheduler.random
        name = random.choice(list(there))
        records, first = there[name][: random.randint(1, 9)], self._at[name]
        if not records:
            next_ = self._stream.ends[name]
        else:
            next_ = records[-1].offset + 1
            after = next(self._stream.span(name, next_, self._stream.ends[name]), None)
            # A broker may tell of a gap together with the records before it, or on its own.
            if after is not None and random.random() < 0.5:
                next_ = random.randint(next_, after.offset)
            if records[0].offset > first and random.random() < 0.2:
                records, next_ = [], records[0].offset
        self._at[name] = next_
        return decoded(name, first, next_, records)


def decoded(partition: str, first: int, next_: int, records: list[Record]) -> DecodedChunk:
    """The chunk as the decoder hands it on."""
    places = [
        (record.offset, leaf, sample, leaf + 1 == len(record.leaves))
        for record in records
        if record.leaves is not None
        for leaf, sample in enumerate(record.leaves)
    ]
    refused = [(record.offset, None) for record in records if record.leaves is None]
    refused += [(offset, leaf) for offset, leaf, sample, _ in places if sample is None]
    good = [place for place in places if place[2] is not None]
    return DecodedChunk(
        partition,
        first,
        next_,
        np.array([offset for offset, *_ in good], np.int64),
        np.array([leaf for _, leaf, *_ in good], np.int64),
        np.array([last for *_, last in good], np.bool_),
        batch_of([sample for _, _, sample, _ in good]),  # type: ignore[misc]
        tuple(
            BadSample("json", "no sample", partition=partition, offset=offset, leaf=leaf)
            for offset, leaf in sorted(refused, key=lambda place: (place[0], place[1] or 0))
        ),
    )


def batch_of(samples: list[int]) -> SampleBatch:
    """A batch whose sample's ids are its own and one that it shares with others."""
    ids, count = np.array(samples, np.uint64), len(samples)
    ends, floats, times = (
        np.arange(count + 1),
        np.zeros((count, 1), np.float32),
        _DAY_MS + ids.astype(np.int64),
    )
    return SampleBatch(
        count,
        {"ledger": Ragged(ids, ends), "hot": Ragged(ids % np.uint64(HOT_IDS), ends)},
        floats[:, :0],
        floats,
        floats[:, 0],
        times,
        times,
    )
