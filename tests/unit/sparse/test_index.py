"""The index and the id set at their edges; their laws are in tests/property."""

from __future__ import annotations

import numpy as np
import pytest

from streamtrain.errors import TableFull
from streamtrain.sparse.index import IdSet, Index
from streamtrain.sparse.probing import tag_of
from streamtrain.sparse.unite import Uniter
from tests.unit.sparse.cases import colliding


def insert(index: Index, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows, fresh = np.empty(len(ids), np.int32), np.empty(len(ids), np.bool_)
    index.find_or_insert(ids, rows, fresh)
    return rows, fresh


@pytest.mark.parametrize("stride", [1, 1 << 20, 1 << 32, 1 << 44])
def test_ids_that_share_their_low_bits_are_as_quick_to_find_as_any(stride: int) -> None:
    ids = [n * stride for n in range(4096)]
    homes = {int(tag_of(np.uint64(id))) >> (32 - 13) for id in ids}
    assert len(homes) > 2000, "4096 ids should spread over 8192 slots"


def test_ids_that_all_collide_are_told_apart() -> None:
    ids = np.array([colliding(n) for n in range(1500)], np.uint64)
    index = Index("index", 2000)
    rows, fresh = insert(index, ids)
    assert fresh.all() and sorted(rows) == list(range(1500))
    erased = ids[::3]
    index.erase(erased)
    assert (index.find(ids) >= 0).tolist() == [n % 3 != 0 for n in range(1500)]


def test_rows_of_erased_ids_are_handed_out_again_the_newest_first() -> None:
    index = Index("index", 100)
    insert(index, np.arange(5, dtype=np.uint64))
    index.erase(np.array([1, 3], np.uint64))
    rows, _ = insert(index, np.array([10, 11, 12], np.uint64))
    assert rows.tolist() == [3, 1, 5]
    assert index.rows_high == 6


def test_a_full_index_names_the_remedy_and_keeps_what_it_has() -> None:
    index = Index("table 'item'", 3)
    rows, fresh = np.empty(6, np.int32), np.ones(6, np.bool_)
    with pytest.raises(TableFull, match=r"table 'item' holds rows_max = 3 rows .* raise rows_max"):
        index.find_or_insert(np.array([7, 7, 8, 9, 10, 7], np.uint64), rows, fresh)
    assert fresh.tolist() == [True, False, True, True, False, False]
    assert index.find(np.array([7, 8, 9, 10], np.uint64)).tolist() == [0, 1, 2, -1]
    known, _ = insert(index, np.array([9, 7], np.uint64))
    assert known.tolist() == [2, 0]


def test_an_id_set_says_which_ids_are_new_and_keeps_their_order() -> None:
    ids = IdSet("asked", 10)
    assert ids.add_missing(np.array([5, 0, 5, 2**64 - 1], np.uint64)).tolist() == [True, True, False, True]
    assert ids.add_missing(np.array([0, 4], np.uint64)).tolist() == [False, True]
    assert ids.ids().tolist() == [5, 0, 2**64 - 1, 4] and len(ids) == 4
    assert ids.remove(np.array([0, 1], np.uint64)).tolist() == [True, False]
    assert ids.contains(np.array([0, 5], np.uint64)).tolist() == [False, True]
    ids.clear()
    assert len(ids) == 0 and not ids.contains(np.array([5], np.uint64)).any()


def test_a_full_id_set_is_an_error() -> None:
    ids = IdSet("asked", 2)
    with pytest.raises(TableFull, match="asked"):
        ids.add_missing(np.arange(3, dtype=np.uint64))
    assert len(ids) == 2


def test_memory_stays_near_the_payload() -> None:
    index = Index("index", 1_000_000)
    insert(index, np.arange(100_000, dtype=np.uint64))
    assert index.memory_bytes < 100_000 * (8 + 23)


def test_uniting_goes_on_when_the_number_of_the_minibatch_wraps() -> None:
    uniter = Uniter()
    values = np.array([3, 1, 3], np.uint64)
    uniter.unite(values)
    uniter._serial = 2**32 - 2
    for _ in range(3):
        assert uniter.unite(values).ids.tolist() == [3, 1]


@pytest.mark.parametrize("count", [0, 1, 716, 717, 5000])
def test_an_index_with_room_made_is_the_index_that_grew(count: int) -> None:
    ids = np.random.default_rng(0).integers(0, 2**64, count, np.uint64)
    grown, made = Index("grown", 10_000), Index("made", 10_000)
    made.make_room(count)
    room = made.memory_bytes
    for index in (grown, made):
        rows, fresh = insert(index, ids)
        assert rows.tolist() == list(range(count)) and fresh.all()
    assert made.memory_bytes == grown.memory_bytes == room + 8 * count
    assert made.find(ids).tolist() == grown.find(ids).tolist()


def test_room_is_made_for_no_more_than_the_bound_and_never_given_up() -> None:
    index = Index("index", 1000)
    index.make_room(1_000_000)
    room = index.memory_bytes
    assert room == 8 * 2048
    insert(index, np.arange(500, dtype=np.uint64))
    index.make_room(10)
    assert index.memory_bytes == room + 8 * 500
    assert (index.find(np.arange(500, dtype=np.uint64)) == np.arange(500)).all()
