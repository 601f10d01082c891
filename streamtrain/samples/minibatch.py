"""Cuts the stream of samples into minibatches that know exactly which records they hold."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from streamtrain.errors import BadSample
from streamtrain.samples.batch import SampleBatch
from streamtrain.samples.decoded import DecodedChunk
from streamtrain.sources import Span

__all__ = ["REFUSED_MAX", "Minibatch", "Minibatcher"]

REFUSED_MAX = 4096
"""Refused records that may wait for a minibatch to fill."""


@dataclass(frozen=True, slots=True)
class Minibatch:
    """The unit of one step: samples, and the spans of records that they came from.

    Attributes:
      batch: the samples; of size 0 where the spans hold bad records or gaps only, so that positions still advance.
      spans: in the order of the samples. Neighbours are of different partitions, or do not touch.
      bad: what was refused in the spans.
      first_arrival_ms: when the oldest of the records arrived, on the clock of `Minibatcher.add`.
    """

    batch: SampleBatch
    spans: tuple[Span, ...]
    bad: tuple[BadSample, ...]
    first_arrival_ms: float


@dataclass(slots=True)
class _Piece:
    """What is left of a decoded chunk: from (offset, leaf) `first` on, its samples from `start` on."""

    chunk: DecodedChunk
    arrived_ms: float
    first: tuple[int, int]
    start: int = 0
    bad_start: int = 0


class Minibatcher:
    """Collects decoded chunks and cuts them at `batch_size` samples, or when the oldest record has waited `linger_ms`.

    It reads no clock and never waits. A full minibatch ends right behind its last sample, inside a record where that has
    more leaves: bad records and gaps that follow belong to the next one. So where chunks were cut makes no difference,
    other than through `linger_ms`.
    It holds what was added until it is taken; whoever adds takes until None comes, which leaves less than a minibatch,
    and fewer than REFUSED_MAX refused records: a flood of them is cut without waiting for samples.

    Args:
      batch_size: samples of a full minibatch.
      linger_ms: how long a record waits for the minibatch to fill. Inf: until it is full, or flushed.
    """

    def __init__(self, batch_size: int, linger_ms: float) -> None:
        self.batch_size, self.linger_ms = batch_size, linger_ms
        self._pieces: deque[_Piece] = deque()
        self._pending = 0
        self._refused = 0
        self._ahead: SampleBatch | None = None

    @property
    def pending(self) -> int:
        """Samples that wait."""
        return self._pending

    @property
    def chunks(self) -> int:
        """Chunks of which anything waits."""
        return len(self._pieces)

    @property
    def due(self) -> bool:
        """Whether `take` gives one without waiting for a deadline."""
        return self._pending >= self.batch_size or self._refused >= REFUSED_MAX

    def add(self, chunk: DecodedChunk, now_ms: float) -> None:
        """Appends a chunk, which arrived at `now_ms`."""
        if chunk.next > chunk.first:
            self._pieces.append(_Piece(chunk, now_ms, (chunk.first, chunk.first_leaf)))
            self._pending += chunk.batch.size
            self._refused += len(chunk.bad)

    def deadline_ms(self) -> float | None:
        """When `take` will give what there is even if it is not full. None: nothing waits."""
        return self._pieces[0].arrived_ms + self.linger_ms if self._pieces else None

    def take(self, now_ms: float) -> Minibatch | None:
        """The next minibatch if it is full or its deadline has come, else None."""
        if self._pending >= self.batch_size:
            return self._cut(self.batch_size)
        if self._refused >= REFUSED_MAX:
            return self.flush()
        deadline_ms = self.deadline_ms()
        return self.flush() if deadline_ms is not None and now_ms >= deadline_ms else None

    def ahead(self) -> SampleBatch | None:
        """The samples of the next minibatch, the very object, where it is full already; takes nothing."""
        if self._ahead is None and self._pending >= self.batch_size:
            batches, missing = [], self.batch_size
            for piece in self._pieces:
                if taken := min(missing, piece.chunk.batch.size - piece.start):
                    batches.append(piece.chunk.batch.slice(piece.start, piece.start + taken))
                    missing -= taken
                if not missing:
                    break
            self._ahead = SampleBatch.concat(batches)
        return self._ahead

    def flush(self) -> Minibatch | None:
        """The next minibatch, full or not; None: nothing waits. It never holds more than `batch_size` samples."""
        if not self._pieces:
            return None
        return self._cut(min(self.batch_size, self._pending))

    def _cut(self, size: int) -> Minibatch:
        """A minibatch of `size` samples. Where that is fewer than a full one, everything that waits is in it."""
        first_arrival_ms = self._pieces[0].arrived_ms
        # Where there is one it is of a full minibatch, which what was added since has not changed.
        ahead, self._ahead = self._ahead, None
        batches: list[SampleBatch] = []
        spans: list[Span] = []
        bad: list[BadSample] = []
        missing = size
        while self._pieces and (missing or size < self.batch_size):
            piece = self._pieces[0]
            taken = min(missing, piece.chunk.batch.size - piece.start)
            # An empty part is kept only where nothing else is, because a minibatch needs arrays of some size.
            if ahead is None and (taken or (not batches and len(self._pieces) == 1)):
                batches.append(piece.chunk.batch.slice(piece.start, piece.start + taken))
            missing -= taken
            _append(spans, self._advance(piece, taken, to_end=size < self.batch_size, bad=bad))
        self._pending -= size
        self._refused -= len(bad)
        batch = SampleBatch.concat(batches) if ahead is None else ahead
        return Minibatch(batch, tuple(spans), tuple(bad), first_arrival_ms)

    def _advance(self, piece: _Piece, taken: int, to_end: bool, bad: list[BadSample]) -> Span:
        """Moves `piece` past `taken` samples and returns the span of it; drops it where nothing is left."""
        chunk = piece.chunk
        stop = piece.start + taken
        # A full minibatch that ends in this piece ends behind its last sample, not at the next one.
        used_up = stop == chunk.batch.size and (to_end or taken == 0)
        next_ = (chunk.next, 0) if used_up else _behind(chunk, stop - 1)
        while piece.bad_start < len(chunk.bad) and _place(chunk.bad[piece.bad_start]) < next_:
            bad.append(chunk.bad[piece.bad_start])
            piece.bad_start += 1
        span = Span(chunk.partition, piece.first[0], next_[0], taken, piece.first[1], next_[1])
        piece.first, piece.start = next_, stop
        if next_ == (chunk.next, 0):
            self._pieces.popleft()
        return span


def _behind(chunk: DecodedChunk, sample: int) -> tuple[int, int]:
    """(offset, leaf) of what comes after a sample."""
    offset = int(chunk.offsets[sample])
    return (offset + 1, 0) if chunk.last[sample] else (offset, int(chunk.leaves[sample]) + 1)


def _place(bad: BadSample) -> tuple[int, int]:
    return bad.offset or 0, bad.leaf or 0


def _append(spans: list[Span], span: Span) -> None:
    last = spans[-1] if spans else None
    if last is not None and last.partition == span.partition and last.end == span.begin:
        spans[-1] = replace(
            last, next=span.next, next_leaf=span.next_leaf, samples=last.samples + span.samples
        )
    else:
        spans.append(span)
