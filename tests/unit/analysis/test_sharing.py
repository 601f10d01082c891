from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.analysis.collisions import collision_probability
from streamtrain.analysis.sharing import collided_share, combined, hashing_of
from streamtrain.log.record import TableRows
from tests.reference_log import table_rows

JOB: dict[str, Any] = {
    "tables": {
        "own": {"dim": 4},
        "one": {"dim": 4, "kind": "hash", "rows": 10},
        "two": {"dim": 4, "kind": "multi_hash", "rows": [3, 5], "combine": "concat"},
    }
}


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=30))
def test_the_share_that_collides_is_of_ids_whose_rows_are_all_another_ones_too(
    rows: list[tuple[int, int]],
) -> None:
    counts = Counter(rows)
    expected = sum(counts[one] > 1 for one in rows) / len(rows) if rows else 0.0
    assert collided_share(np.array(rows, np.uint64).reshape(-1, 2)) == expected


@pytest.mark.parametrize("combine", ["add", "multiply", "concat"])
def test_a_vector_is_made_of_its_rows_part_after_part(combine: str) -> None:
    rows: TableRows = table_rows([5, 3, 9])
    a, b, c = rows.weights
    hashing = hashing_of({"tables": {"t": JOB["tables"]["two"] | {"combine": combine}}}, "t")
    assert hashing is not None
    expected = {"add": a + b + c, "multiply": a * b * c, "concat": np.concatenate([a, b, c])}[combine]
    assert combined(hashing, rows).tobytes() == expected.tobytes()


def test_only_hashed_tables_share_rows() -> None:
    assert hashing_of(JOB, "own") is None and hashing_of({}, "own") is None
    one, two = hashing_of(JOB, "one"), hashing_of(JOB, "two")
    assert one is not None and two is not None and (one.sizes, two.sizes) == ([10], [3, 5])


def test_the_birthday_bound_is_near_one_half_at_five_billion_ids() -> None:
    assert collision_probability(0) == collision_probability(1) == 0
    assert collision_probability(10_000_000) == pytest.approx(2.7e-6, rel=0.01)
    assert collision_probability(5_056_937_541) == pytest.approx(0.5, rel=1e-3)
