"""What the rows in use tell of the ids that share them, against ids that were counted."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from streamtrain.sparse.collisions import collisions, occupied
from streamtrain.sparse.hashed_ids import RowIds
from streamtrain.sparse.tables import Hashing
from tests.reference_hashed import row_ids


def counted(hashing: Hashing, ids: int) -> tuple[float, list[float]]:
    """The share of ids that share all rows, and by part that of those that share this one: by counting."""
    rows = [tuple(row_ids(hashing, 4, "t", id)) for id in range(ids)]
    whole = Counter(rows)
    parts = [Counter(row[p] for row in rows) for p in range(hashing.parts)]
    return (
        sum(whole[row] > 1 for row in rows) / ids,
        [sum(parts[p][row[p]] > 1 for row in rows) / ids for p in range(hashing.parts)],
    )


@pytest.mark.parametrize(
    ("scheme", "sizes", "ids"),
    [
        ("independent", [4000], 1000),
        ("independent", [1000], 3000),
        ("quotient_remainder", [400, 50], 3000),
        ("independent", [300, 200, 40], 1500),
    ],
)
def test_estimates_are_near_what_is_counted(scheme: str, sizes: list[int], ids: int) -> None:
    hashing = Hashing(scheme=scheme, sizes=sizes, combine="add")  # type: ignore[arg-type]
    used = np.unique(RowIds(hashing, 4, "t").of(np.arange(ids, dtype=np.uint64)))
    found = collisions(hashing, occupied(hashing, used))
    assert sum(found.occupied) == len(used)
    # The error is a standard deviation.
    assert abs(found.ids - ids) < 5 * found.ids_error * ids
    collided, shared = counted(hashing, ids)
    assert found.collided == pytest.approx(collided, abs=0.03)
    assert found.shared == pytest.approx(shared, abs=0.03)


def test_a_full_table_gives_a_lower_bound_and_says_so() -> None:
    found = collisions(Hashing(scheme="independent", sizes=[100], combine="add"), [100])
    assert math.isinf(found.ids_error) and found.ids == pytest.approx(100 * math.log(100))
    assert found.collided > 0.98


def test_an_empty_table_has_seen_nothing() -> None:
    found = collisions(Hashing(scheme="independent", sizes=[100, 7], combine="add"), [0, 0])
    assert (found.ids, found.ids_error, found.collided, found.shared) == (0.0, 0.0, 0.0, (0.0, 0.0))


def test_a_full_part_is_not_asked_where_another_has_room() -> None:
    hashing = Hashing(scheme="independent", sizes=[10_000, 5], combine="add")
    assert collisions(hashing, [1000, 5]).ids == pytest.approx(-10_000 * math.log(0.9))
