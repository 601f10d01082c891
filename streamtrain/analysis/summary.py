"""What a table is like as a whole: three histograms and its size, in one pass over its rows."""

from __future__ import annotations

from dataclasses import dataclass

from streamtrain.analysis.histogram import Histogram
from streamtrain.analysis.ranking import norms
from streamtrain.analysis.snapshot import Snapshot

__all__ = ["Summary", "summarise"]


@dataclass(frozen=True, slots=True)
class Summary:
    """A table at an epoch.

    Attributes:
      rows: how many.
      frequency: occurrences learned from, of each row.
      age: steps since the last update, of each row.
      norm: L2 norm of the weights, of each row.
    """

    rows: int
    frequency: Histogram
    age: Histogram
    norm: Histogram


def summarise(snapshot: Snapshot) -> Summary:
    """Reads every row once."""
    frequency, age, norm = Histogram(), Histogram(), Histogram()
    for rows in snapshot.chunks():
        frequency.add(rows.counts)
        age.add(snapshot.ages(rows.last_steps))
        norm.add(norms(rows.weights))
    return Summary(len(snapshot), frequency, age, norm)
