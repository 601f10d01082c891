"""Where reading resumes, kept from the spans of the minibatches; refuses a span that skips or repeats records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from streamtrain.errors import SourceError
from streamtrain.sources import Gap, Span

__all__ = ["PositionTracker"]


class PositionTracker:
    """By partition, the next offset to read.

    Args:
      positions: where reading begins. A partition that is not in it may begin anywhere.
      sequential: whether partitions follow one another (files): only the last one read keeps a position.
    """

    def __init__(self, positions: Mapping[str, int], *, sequential: bool) -> None:
        self._positions = dict(positions)
        self._sequential = sequential

    @property
    def positions(self) -> dict[str, int]:
        """A copy of the positions."""
        return dict(self._positions)

    def advance(self, spans: Iterable[Span]) -> None:
        """Moves past `spans`, all of them or, where one is refused, none.

        Raises:
          SourceError: a span does not begin where its partition stands. Learning it would lose or repeat records.
        """
        moved = dict(self._positions)
        for span in spans:
            position = moved.get(span.partition)
            if (position is not None and span.first != position) or span.next < span.first:
                raise SourceError(
                    f"{span.partition}: the source gave records {span.first} to {span.next} where {position} comes next; "
                    "nothing of them was learned. This is a fault of the source's plug-in: report it, and restart to resume"
                )
            if self._sequential and position is None:
                moved.clear()
            moved[span.partition] = span.next
        self._positions = moved

    def skip(self, gaps: Iterable[Gap]) -> None:
        """Moves over `gaps`, all of them or, where one is refused, none.

        Raises:
          SourceError: a gap does not begin where its partition stands: something else than what it names would be lost.
        """
        moved = dict(self._positions)
        for gap in gaps:
            position = moved.pop(gap.partition, None)
            if position != gap.first:
                raise SourceError(
                    f"{gap.partition}: the source skips records from {gap.first} on where {position} comes next; nothing "
                    "after it was learned. This is a fault of the source's plug-in: report it, and restart to resume"
                )
            if gap.next is not None:
                moved[gap.partition] = gap.next
        self._positions = moved
