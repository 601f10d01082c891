"""Growing and shrinking in place: bounded work for each id, and memory that goes back."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from pydantic import TypeAdapter

from streamtrain.log.record import TableRows
from streamtrain.sparse.index import Index
from streamtrain.sparse.memory import give_back, reserve
from streamtrain.sparse.settings import AnyInit, AnyOptimizer
from streamtrain.sparse.table import EmbeddingTable
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


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere memory is kept")
def test_whole_pages_are_given_back_and_what_lies_before_them_stays() -> None:
    array = reserve((1 << 20,), np.uint64, "test")
    array[:] = 7
    give_back(array, 1000, 900_000)
    assert (array[:1024] == 7).all() and not array[1024:900_000].any()
    assert (array[900_096:] == 7).all()
    give_back(array, 0, 0)
    give_back(array, 1, 512)
    assert (array[:1024] == 7).all(), "no whole page"
    give_back(array, 0, 1 << 20)
    assert not array.any()


def columns(rows: TableRows) -> dict[int, tuple[bytes, bytes, int, int]]:
    return {
        int(id): (
            rows.weights[n].tobytes(),
            rows.slots[n].tobytes(),
            int(rows.counts[n]),
            int(rows.last_steps[n]),
        )
        for n, id in enumerate(rows.ids)
    }


def test_a_table_that_compacts_holds_and_cuts_the_same_rows_in_less_memory() -> None:
    adagrad = TypeAdapter(AnyOptimizer).validate_python({"kind": "adagrad"})
    init = TypeAdapter(AnyInit).validate_python({"kind": "normal"})
    loose, tight = (
        EmbeddingTable("t", 8, init=init, seed=1, rows_max=100_000, optimizer=adagrad) for _ in range(2)
    )
    random = np.random.default_rng(0)
    ids = random_ids(40_000)
    gradients = random.standard_normal((len(ids), 8), np.float32)
    for table in (loose, tight):
        rows = table.find_or_insert(ids)
        assert table.learn(rows, gradients, np.ones(len(ids), np.uint32), 1)
        table.keep_learned(rows)
        table.cut()
        rows = table.find_or_insert(ids[::3])
        assert table.learn(rows, gradients[::3], np.ones(len(rows), np.uint32), 2)
        table.keep_learned(rows)
        table.remove(ids[ids % np.uint64(10) != 0])
    before = tight.memory_bytes
    for _ in range(20):
        tight.compact()
    assert tight.memory_bytes < before / 2 < loose.memory_bytes / 2 + 1
    assert columns(tight.export()) == columns(loose.export()) and len(tight) > 3500
    assert_same_rows(tight.cut(), loose.cut())
    # Arena and marks of at most half as many rows again, and of those that were not worth the move.
    rows_at_most = 3 * len(tight) // 2 + 4096
    assert tight.memory_bytes - tight.index_bytes < rows_at_most * (4 * 18 + 4) + 10_000
    new = random_ids(20_000, seed=2)
    for table in (loose, tight):
        table.find_or_insert(new)
    assert columns(tight.export()) == columns(loose.export())


def assert_same_rows(left: TableRows, right: TableRows) -> None:
    for column in TableRows.__slots__:
        np.testing.assert_array_equal(getattr(left, column), getattr(right, column), strict=True)


def test_a_follower_gives_memory_back_with_the_tombstones_that_it_loads() -> None:
    init = TypeAdapter(AnyInit).validate_python({"kind": "normal"})
    table = EmbeddingTable("t", 8, init=init, seed=1, rows_max=100_000)
    ids = random_ids(40_000)
    table.find_or_insert(ids)
    whole, full = columns(table.export()), table.memory_bytes
    for start in range(0, 38_000, 1000):
        gone = ids[start : start + 1000]
        table.load(replace(TableRows.empty(8, 0), tombstones=gone))
    assert columns(table.export()) == {int(id): whole[int(id)] for id in ids[38_000:]}
    assert table.memory_bytes < full / 4
