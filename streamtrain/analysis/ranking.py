"""Rows in some order, best first: by their own numbers, or by nearness to one of them. One pass, a bounded list."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from streamtrain.analysis.snapshot import Snapshot
from streamtrain.log.record import TableRows

__all__ = ["Best", "Measure", "Nearness", "Neighbours", "nearest", "norms", "top"]

Measure = Literal["count", "norm", "last_step", "age"]
Nearness = Literal["cosine", "dot"]


class Best:
    """The `size` largest of a stream of scored ids; of equal scores the smaller id is first."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.ids = np.empty(0, np.uint64)
        self.scores = np.empty(0, np.float64)

    def add(self, ids: NDArray[np.uint64], scores: NDArray[np.float64]) -> None:
        """Args: ids: `[N]`, none of which came before; scores: `[N]`, not NaN."""
        ids, scores = np.concatenate([self.ids, ids]), np.concatenate([self.scores, scores])
        order = np.lexsort((ids, -scores))[: self.size]
        self.ids, self.scores = ids[order], scores[order]


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The rows nearest to one, nearest first, without itself.

    Attributes:
      ids: `[N]` uint64.
      cosines: `[N]` float64; 0 where one of the two is a zero vector.
      dots: `[N]` float64.
    """

    ids: NDArray[np.uint64]
    cosines: NDArray[np.float64]
    dots: NDArray[np.float64]


def norms(vectors: NDArray[np.float32] | NDArray[np.float64]) -> NDArray[np.float64]:
    """The L2 norm of each row, in float64: no square overflows."""
    wide = vectors.astype(np.float64)
    return np.sqrt(np.einsum("nd,nd->n", wide, wide))


def top(snapshot: Snapshot, measure: Measure, size: int) -> TableRows:
    """The `size` rows with the largest count, norm, last step (the newest first) or age (the oldest first)."""
    best = Best(size)
    for rows in snapshot.chunks():
        best.add(rows.ids, _measured(snapshot, rows, measure))
    return snapshot.pick(snapshot.find(best.ids))


def _measured(snapshot: Snapshot, rows: TableRows, measure: Measure) -> NDArray[np.float64]:
    match measure:
        case "count":
            return rows.counts.astype(np.float64)
        case "norm":
            return norms(rows.weights)
        case "age":
            return snapshot.ages(rows.last_steps).astype(np.float64)
        case "last_step":
            # By age, because step numbers begin again after 2^32.
            return -snapshot.ages(rows.last_steps).astype(np.float64)


def nearest(
    snapshot: Snapshot, vector: NDArray[np.float32], size: int, by: Nearness, without: int
) -> Neighbours:
    """The `size` rows whose vectors have the largest cosine, or dot product, with `vector`.

    Every row is compared; nothing is approximated.

    Args:
      vector: `[D]` float32.
      without: an id that is left out: that of the vector itself.
    """
    best = Best(size)
    for ids, cosines, dots in _compared(snapshot.chunks(), vector):
        others = ids != without
        best.add(ids[others], (cosines if by == "cosine" else dots)[others])
    found = snapshot.pick(snapshot.find(best.ids))
    _, cosines, dots = next(_compared(iter([found]), vector))
    return Neighbours(found.ids, cosines, dots)


def _compared(
    chunks: Iterator[TableRows], vector: NDArray[np.float32]
) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.float64], NDArray[np.float64]]]:
    wide = vector.astype(np.float64)
    length = float(np.sqrt(wide @ wide))
    for rows in chunks:
        # Not a matrix product: its sums depend on the number of rows, and equal rows must have equal scores.
        dots = np.einsum("nd,d->n", rows.weights.astype(np.float64), wide)
        lengths = norms(rows.weights) * length
        cosines = np.divide(dots, lengths, out=np.zeros_like(dots), where=lengths > 0)
        yield rows.ids, cosines, dots
