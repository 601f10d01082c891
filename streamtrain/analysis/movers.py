"""What became of a table's rows between two epochs: which moved how far, which came, which went."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamtrain.analysis.histogram import Histogram
from streamtrain.analysis.ranking import Best, norms
from streamtrain.analysis.snapshot import CHUNK_ROWS, Snapshot
from streamtrain.errors import ConfigError

__all__ = ["Movers", "movers"]


@dataclass(frozen=True, slots=True)
class Movers:
    """The difference of two epochs of one table. The lists of ids are the largest, largest first.

    Attributes:
      moved, new, removed, unchanged: how many rows of each sort there are; those moved differ in their weights.
      distances: of all rows that moved, the L2 norm of the difference of their weights.
      farthest: ids that moved, by that distance.
      largest_new: ids that only the later epoch has, by the norm that they have there.
      largest_removed: ids that only the earlier epoch has, by the norm that they had there.
    """

    moved: int
    new: int
    removed: int
    unchanged: int
    distances: Histogram
    farthest: Best
    largest_new: Best
    largest_removed: Best


def movers(earlier: Snapshot, later: Snapshot, size: int) -> Movers:
    """Compares two epochs of one table, piece by piece. "Earlier" and "later" may be any two.

    Raises:
      ConfigError: vectors of the two have not the same dim.
    """
    if earlier.dim != later.dim:
        raise ConfigError(
            f"table {later.table!r} has dim {earlier.dim} at epoch {earlier.epoch} and {later.dim} at epoch "
            f"{later.epoch}: their rows cannot be compared"
        )
    distances, farthest, largest_new = Histogram(), Best(size), Best(size)
    both = 0
    for rows in later.chunks():
        places = earlier.find(rows.ids)
        kept = places >= 0
        both += int(kept.sum())
        largest_new.add(rows.ids[~kept], norms(rows.weights[~kept]))
        before = earlier.pick(places[kept]).weights
        moved = norms(rows.weights[kept].astype(np.float64) - before)
        distances.add(moved[moved > 0])
        farthest.add(rows.ids[kept][moved > 0], moved[moved > 0])
    removed, largest_removed = _only(earlier, later, size)
    return Movers(
        distances.count,
        len(later) - both,
        removed,
        both - distances.count,
        distances,
        farthest,
        largest_new,
        largest_removed,
    )


def _only(one: Snapshot, other: Snapshot, size: int) -> tuple[int, Best]:
    """How many ids only `one` has, and those with the largest norms."""
    best, count = Best(size), 0
    for first in range(0, len(one), CHUNK_ROWS):
        gone: NDArray[np.int64] = np.flatnonzero(other.find(one.ids[first : first + CHUNK_ROWS]) < 0) + first
        rows = one.pick(gone)
        best.add(rows.ids, norms(rows.weights))
        count += len(gone)
    return count, best
