"""How many ids share rows in a table of fixed size, from nothing but which rows are in use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamtrain.sparse.tables import PART_BITS, Hashing

__all__ = ["Collisions", "collisions", "occupied"]


@dataclass(frozen=True, slots=True)
class Collisions:
    """What linear counting says of a hashed table.

    Attributes:
      sizes: by part, its rows.
      occupied: by part, how many are in use.
      ids: distinct ids that the model has seen, estimated.
      ids_error: the estimate's relative standard error; infinite where every row is in use, and `ids` a lower bound.
      shared: by part, the share of ids whose row in it is another's too.
      collided: the share of ids that share all of their rows with one other or more: these cannot be told apart.
    """

    sizes: tuple[int, ...]
    occupied: tuple[int, ...]
    ids: float
    ids_error: float
    shared: tuple[float, ...]
    collided: float


def occupied(hashing: Hashing, row_ids: NDArray[np.uint64]) -> list[int]:
    """By part, how many of `row_ids` (`[N]` uint64, distinct: a table's in the log or the store) are in it."""
    parts = (row_ids >> np.uint64(PART_BITS)).astype(np.int64)
    found: list[int] = np.bincount(parts, minlength=hashing.parts).tolist()
    return found


def collisions(hashing: Hashing, in_use: Sequence[int]) -> Collisions:
    """Estimates the distinct ids from the rows in use, and from these who shares.

    n ids leave a share of exp(-n / m) of m rows empty; so n is about -m ln(empty / m), with a standard error of
    sqrt(m (exp(t) - t - 1)), t = n / m. The part with the least relative error is asked. The model takes ids for
    independent and uniform, which hashes are.

    Args:
      hashing: of the table.
      in_use: by part, rows in use: see `occupied`.

    Source: Whang, Vander-Zanden and Taylor, "A linear-time probabilistic counting algorithm for database
    applications", ACM TODS 15 (2), 1990.
    """
    assert len(in_use) == hashing.parts and all(
        0 <= n <= m for n, m in zip(in_use, hashing.sizes, strict=True)
    )
    estimates = [_linear_count(n, m) for n, m in zip(in_use, hashing.sizes, strict=True)]
    ids, error = min(estimates, key=lambda estimate: (estimate[1], -estimate[0]))
    others = max(ids - 1, 0.0)
    return Collisions(
        tuple(hashing.sizes),
        tuple(in_use),
        ids,
        error,
        tuple(-math.expm1(-others / m) for m in hashing.sizes),
        -math.expm1(-others / math.prod(hashing.sizes)),
    )


def _linear_count(in_use: int, rows: int) -> tuple[float, float]:
    """Estimated ids, and the relative standard error."""
    if not in_use:
        return 0.0, 0.0
    if in_use == rows:
        # With one row left empty it would have been this many.
        return max(rows * math.log(rows), 1.0), math.inf
    ids = -rows * math.log1p(-in_use / rows)
    load = ids / rows
    return ids, math.sqrt(max(rows * (math.expm1(load) - load), 0.0)) / ids
