"""The samples of a chunk, each with its place in the source."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from streamtrain.errors import BadSample
from streamtrain.samples.batch import SampleBatch
from streamtrain.sources import Span

__all__ = ["DecodedChunk"]


@dataclass(frozen=True, slots=True)
class DecodedChunk:
    """The samples of a chunk. `partition`, `first` and `next` are the chunk's.

    A record may hold many samples, its leaves. They are numbered from 0 in their order, refused ones too.

    Attributes:
      offsets: `[B]` int64, ascending: where the record of each sample stands.
      leaves: `[B]` int64, each sample's number in its record; ascending within a record.
      last: `[B]` bool, whether no leaf follows it in its record, not even a refused one.
      batch: the B good samples.
      bad: what was refused, ascending by offset and leaf, with partition and offset filled in.
      first_leaf: leaves of the record at `first` that are left out, because they were learned before.
    """

    partition: str
    first: int
    next: int
    offsets: NDArray[np.int64]
    leaves: NDArray[np.int64]
    last: NDArray[np.bool_]
    batch: SampleBatch
    bad: tuple[BadSample, ...]
    first_leaf: int = 0

    def index_of(self, offset: int, leaf: int) -> int:
        """How many of the samples stand before a place."""
        at = int(np.searchsorted(self.offsets, offset))
        if leaf:
            end = int(np.searchsorted(self.offsets, offset, side="right"))
            at += int(np.searchsorted(self.leaves[at:end], leaf))
        return at

    def behind(self, leaves: int) -> DecodedChunk:
        """The chunk without the first `leaves` leaves of the record at `first`."""
        start = self.index_of(self.first, leaves)
        return replace(
            self._part(start, self.batch.size),
            # A record that is refused as a whole, which it was not then, is told of again.
            bad=tuple(b for b in self.bad if b.offset != self.first or b.leaf is None or b.leaf >= leaves),
            first_leaf=leaves,
        )

    def halves(self) -> tuple[DecodedChunk, DecodedChunk] | None:
        """The chunk in two, at the record where half of its samples are reached; None where one record has them all."""
        if not self.batch.size or self.offsets[0] == self.offsets[-1]:
            return None
        middle = self.offsets[self.batch.size // 2]
        if middle == self.offsets[0]:
            middle = self.offsets[np.searchsorted(self.offsets, middle, side="right")]
        at = int(np.searchsorted(self.offsets, middle))
        bad = next((i for i, b in enumerate(self.bad) if (b.offset or 0) >= middle), len(self.bad))
        return (
            replace(self._part(0, at), next=int(middle), bad=self.bad[:bad]),
            replace(self._part(at, self.batch.size), first=int(middle), bad=self.bad[bad:], first_leaf=0),
        )

    def _part(self, start: int, stop: int) -> DecodedChunk:
        """The chunk with only a slice of its samples."""
        return replace(
            self,
            offsets=self.offsets[start:stop],
            leaves=self.leaves[start:stop],
            last=self.last[start:stop],
            batch=self.batch.slice(start, stop),
        )

    def within(self, span: Span) -> tuple[SampleBatch, list[BadSample]]:
        """The samples that stand in a span of the partition, and what was refused there."""
        start, stop = self.index_of(*span.begin), self.index_of(*span.end)
        held = [b for b in self.bad if b.offset is not None and span.holds(b.offset, b.leaf)]
        return self.batch.slice(start, max(start, stop)), held
