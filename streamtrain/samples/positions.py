"""Where reading resumes, kept from the spans of the minibatches; refuses a span that skips or repeats anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from streamtrain.errors import SourceError
from streamtrain.samples.decoded import DecodedChunk
from streamtrain.sources import Gap, Span

__all__ = ["LeavesLearned", "PositionTracker"]

_FAULT = "This is a fault of the source's plug-in: report it, and restart to resume"


class PositionTracker:
    """By partition, the next offset to read, and how many leaves of the record there are learned already.

    Args:
      positions: where reading begins. A partition that is not in it may begin anywhere.
      sequential: whether partitions follow one another (files): only the last one read keeps a position.
      leaves: by partition of `positions`, the leaves learned; 0 where it has none.
    """

    def __init__(
        self, positions: Mapping[str, int], *, sequential: bool, leaves: Mapping[str, int] | None = None
    ) -> None:
        given = leaves or {}
        self._places = {name: (offset, given.get(name, 0)) for name, offset in positions.items()}
        self._sequential = sequential

    @property
    def positions(self) -> dict[str, int]:
        """By partition, the next offset to read."""
        return {name: offset for name, (offset, _) in self._places.items()}

    @property
    def leaves(self) -> dict[str, int]:
        """By partition, how many leaves of the record at its position are learned; without those where none is."""
        return {name: leaf for name, (_, leaf) in self._places.items() if leaf}

    def advance(self, spans: Iterable[Span]) -> None:
        """Moves past `spans`, all of them or, where one is refused, none.

        Raises:
          SourceError: a span does not begin where its partition stands. Learning it would lose or repeat samples.
        """
        moved = dict(self._places)
        for span in spans:
            place = moved.get(span.partition)
            if (place is not None and span.begin != place) or span.end < span.begin:
                raise SourceError(
                    f"{span.partition}: the source gave records {_words(span.begin)} to {_words(span.end)} where "
                    f"{None if place is None else _words(place)} comes next; nothing of them was learned. {_FAULT}"
                )
            if self._sequential and place is None:
                moved.clear()
            moved[span.partition] = span.end
        self._places = moved

    def skip(self, gaps: Iterable[Gap]) -> None:
        """Moves over `gaps`, all of them or, where one is refused, none. What was left of a record is lost with it.

        Raises:
          SourceError: a gap does not begin where its partition stands: something else than what it names would be lost.
        """
        moved = dict(self._places)
        for gap in gaps:
            position, _ = moved.pop(gap.partition, (None, 0))
            if position != gap.first:
                raise SourceError(
                    f"{gap.partition}: the source skips records from {gap.first} on where {position} comes next; nothing "
                    f"after it was learned. {_FAULT}"
                )
            if gap.next is not None:
                moved[gap.partition] = (gap.next, 0)
        self._places = moved


class LeavesLearned:
    """Leaves out, behind a restart, what had been learned of the records that the positions stand at.

    Args:
      leaves: by partition, how many leaves of the record at its position are learned.
    """

    def __init__(self, leaves: Mapping[str, int] | None = None) -> None:
        self._left = dict(leaves or {})

    def leave_out(self, chunk: DecodedChunk) -> DecodedChunk:
        """What is left of the next chunk: the first one of a partition begins at its position."""
        leaves = self._left.pop(chunk.partition, 0)
        return chunk.behind(leaves) if leaves else chunk

    def skip(self, gaps: Iterable[Gap]) -> None:
        """Partitions that go on elsewhere begin there with a whole record."""
        for gap in gaps:
            self._left.pop(gap.partition, None)


def _words(place: tuple[int, int]) -> str:
    offset, leaf = place
    return f"{offset} leaf {leaf}" if leaf else f"{offset}"
