"""Growing and shrinking in place: bounded work for each id, and memory that goes back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamtrain.sparse.index import Index
from streamtrain.sparse.memory import give_back, reserve
from tests.reference_index import assert_all_have_their_turn, assert_in_order
from tests.unit.sparse.cases import colliding

LAST_HOME = 0xFFFFFFFF


def add(index: Index, ids: np.ndarray) -> None:
    index.find_or_insert(ids, np.empty(len(ids), np.int32), np.empty(len(ids), np.bool_))


def random_ids(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, count, np.uint64)


def moved(before: tuple[int, int], after: tuple[int, int]) -> int:
    """Coarse homes split or joined from one layout to the next, of one size or of neighbouring ones."""
    (bits, split), (bits_after, split_after) = before, after
    if bits_after == bits + 1:
        return split + 2 ** (bits + 1) - split_after
    if bits_after == bits - 1:
        return 2**bits - split + split_after
    return abs(split - split_after)


@pytest.mark.parametrize("ids", [random_ids(6000), np.array([colliding(n) for n in range(1500)], np.uint64)])
def test_no_id_that_comes_or_goes_moves_more_than_a_stride_of_homes(ids: np.ndarray) -> None:
    index = Index("index", 10_000)
    grew = shrank = False
    for n, id in enumerate(ids):
        before = index.layout
        add(index, np.array([id]))
        grew |= index.layout != before
        assert moved(before, index.layout) <= 16
        if n % 97 == 0:
            assert index.find(ids).tolist() == [*range(n + 1), *[-1] * (len(ids) - n - 1)]
    assert_in_order(index)
    for n, id in enumerate(ids):
        before = index.layout
        index.erase(np.array([id]))
        shrank |= index.layout != before
        assert moved(before, index.layout) <= 16
        if n % 97 == 0:
            assert (index.find(ids) >= 0).tolist() == [False] * (n + 1) + [True] * (len(ids) - n - 1)
    assert grew and shrank and index.layout == (10, 1024)


@pytest.mark.parametrize("erased", [3000, 5500, 5990])
def test_growth_may_turn_back_midway(erased: int) -> None:
    ids = random_ids(6000)
    index = Index("index", 10_000)
    for count in range(3000, 6000, 250):
        add(index, ids[:count])
        index.erase(ids[: count * erased // 6000])
        assert_in_order(index)
        assert_all_have_their_turn(index, set(ids[count * erased // 6000 : count].tolist()), 5)
        add(index, ids[:count])
        assert_in_order(index)
        assert (index.find(ids[:count]) >= 0).all() and len(index) == count


def test_ids_whose_home_is_the_last_lie_behind_it_at_any_size() -> None:
    golden, ids = 0x9E3779B97F4A7C15, []
    inverse = pow(golden, -1, 2**64)
    for low in range(2000):
        mixed = (LAST_HOME << 32 | low) * inverse % 2**64
        ids.append(mixed ^ mixed >> 32)
    index = Index("index", 4000)
    add(index, np.array(ids, np.uint64))
    assert_in_order(index)
    index.erase(np.array(ids[::2], np.uint64))
    index.erase(np.array(ids[1::4], np.uint64))
    assert_in_order(index)
    assert (index.find(np.array(ids, np.uint64)) >= 0).tolist() == [n % 4 == 3 for n in range(2000)]


def test_memory_goes_back_when_most_ids_have_gone() -> None:
    index = Index("index", 2_000_000)
    ids = random_ids(1_000_000)
    add(index, ids)
    slots = index.memory_bytes - 8 * index.rows_high
    for start in range(0, 990_000, 10_000):
        index.erase(ids[start : start + 10_000])
    assert index.memory_bytes - 8 * index.rows_high <= slots // 16
    assert (index.find(ids) >= 0).tolist() == [False] * 990_000 + [True] * 10_000
    add(index, ids)
    assert (index.find(ids) >= 0).all()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_only_whole_pages_between_the_bounds_are_given_back() -> None:
    array = reserve((1 << 20,), np.uint64, "test")
    array[:] = 7
    give_back(array, 1000, 900_000)
    kept = np.flatnonzero(array)
    assert (array[:1000] == 7).all() and (array[900_000:] == 7).all()
    assert len(kept) < len(array) - 899_000 + 2 * 512
    give_back(array, 0, 511)
    assert (array[:511] == 7).all(), "not one whole page"
