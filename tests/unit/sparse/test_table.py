"""Embedding tables: rows that come, go and come again between epoch cuts."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from streamtrain.errors import ConfigError, TableFull
from streamtrain.log.record import TableRows
from streamtrain.sparse.settings import Adagrad, AnyOptimizer, Normal
from streamtrain.sparse.table import EmbeddingTable
from tests.unit.sparse.cases import assert_same_bits, assert_same_rows, by_id


def ids_of(*ids: int) -> np.ndarray:
    return np.array(ids, np.uint64)


def table_of(rows_max: int = 1000, optimizer: AnyOptimizer | None = Adagrad()) -> EmbeddingTable:  # noqa: B008
    return EmbeddingTable("item", 4, init=Normal(std=0.1), seed=3, rows_max=rows_max, optimizer=optimizer)


def learn(table: EmbeddingTable, *ids: int, gradient: float = 1.0, step: int = 1) -> None:
    rows = table.find_or_insert(ids_of(*ids))
    gradients = np.full((len(ids), 4), gradient, np.float32)
    assert table.learn(rows, gradients, np.ones(len(ids), np.uint32), step)
    table.keep_learned(rows)


def test_a_cut_reports_learned_rows_once_in_the_order_of_their_first_change() -> None:
    table = table_of()
    learn(table, 5, 2)
    learn(table, 9, 5)
    assert table.cut().ids.tolist() == [5, 2, 9]
    assert table.cut().ids.tolist() == []
    learn(table, 2)
    assert table.cut().ids.tolist() == [2]


def test_a_row_that_was_only_looked_up_is_not_reported() -> None:
    table = table_of()
    table.find_or_insert(ids_of(1, 2))
    table.lookup(ids_of(3))
    assert len(table.cut().ids) == 0 and len(table) == 2


def test_a_removed_row_is_a_tombstone_and_starts_anew() -> None:
    table = table_of()
    initial = table.lookup(ids_of(1))
    learn(table, 1, 2)
    table.cut()
    assert table.remove(ids_of(1, 1, 77)) == 1
    cut = table.cut()
    assert cut.tombstones.tolist() == [1] and len(cut.ids) == 0
    table.find_or_insert(ids_of(1))
    fresh = table.export()
    place = fresh.ids.tolist().index(1)
    assert_same_bits(fresh.weights[[place]], initial)
    assert (fresh.slots[place] == np.float32(0.1)).all()
    assert (fresh.counts[place], fresh.last_steps[place]) == (0, 0)
    assert table.cut().tombstones.tolist() == []


def test_a_row_removed_and_learned_again_between_two_cuts_is_a_row() -> None:
    table = table_of()
    learn(table, 1)
    table.remove(ids_of(1))
    learn(table, 1)
    cut = table.cut()
    assert (cut.ids.tolist(), cut.tombstones.tolist()) == ([1], [])
    assert cut.counts.tolist() == [1]


def test_a_row_learned_and_removed_between_two_cuts_is_a_tombstone() -> None:
    table = table_of()
    learn(table, 1, 2)
    table.remove(ids_of(1))
    learn(table, 3)  # Takes the row that 1 had, after 2.
    cut = table.cut()
    assert (cut.ids.tolist(), cut.tombstones.tolist()) == ([2, 3], [1])


def test_a_row_removed_and_only_looked_up_again_is_still_a_tombstone() -> None:
    table = table_of()
    learn(table, 1)
    table.cut()
    table.remove(ids_of(1))
    table.find_or_insert(ids_of(1))
    assert table.cut().tombstones.tolist() == [1]


def test_loading_what_was_cut_gives_the_same_table() -> None:
    table, copy = table_of(), table_of()
    for step in range(20):
        learn(table, step % 7, (step * 5) % 11 + 20, step=step, gradient=step - 9.5)
        if step % 6 == 0:
            table.remove(ids_of(step % 7))
        if step % 3 == 0:
            copy.load(table.cut())
    copy.load(table.cut())
    assert_same_rows(by_id(copy.export()), by_id(table.export()))
    assert_same_rows(copy.cut(), TableRows.empty(4, 4))


def test_rows_loaded_as_dirty_are_reported_with_their_tombstones() -> None:
    table, copy = table_of(), table_of()
    learn(table, 1, 2, 3)
    rows = table.cut()
    copy.load(rows)
    table.remove(ids_of(2))
    learn(table, 3)
    cut = table.cut()
    copy.load(cut, dirty=True)
    assert_same_rows(copy.cut(), cut)


def test_loading_overwrites_a_row_and_forgets_its_removal() -> None:
    table, other = table_of(), table_of()
    learn(other, 1, gradient=5.0)
    rows = other.cut()
    learn(table, 1)
    table.cut()
    table.remove(ids_of(1))
    table.load(rows)
    assert_same_rows(table.export(), other.export())
    assert len(table.cut().tombstones) == 0


def test_pulled_rows_never_overwrite_newer_ones() -> None:
    stored = table_of()
    learn(stored, 1, 2, 3)
    pulled = stored.cut()
    table = table_of()
    learn(table, 2, gradient=-3.0)
    learn(table, 3)
    table.remove(ids_of(3))
    newer = table.export()
    assert table.insert_missing(pulled) == 1
    rows = by_id(table.export())
    assert rows.ids.tolist() == [1, 2]
    assert_same_bits(rows.weights[[0]], pulled.weights[[0]])
    assert_same_bits(rows.weights[[1]], newer.weights)
    cut = table.cut()
    assert (cut.ids.tolist(), cut.tombstones.tolist()) == ([2], [3])


def test_growing_keeps_every_row_bit_for_bit() -> None:
    table = table_of(rows_max=60_000)
    learn(table, *range(500))
    before = table.cut()
    table.find_or_insert(np.arange(10_000, 60_000, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    after = by_id(table.export())
    assert_same_bits(after.weights[:500], before.weights)
    assert_same_bits(after.slots[:500], before.slots)
    assert len(table) > 50_000 - 1


def test_a_full_table_stays_consistent() -> None:
    table = table_of(rows_max=3)
    initial = table.lookup(ids_of(1, 2, 3))
    learn(table, 9)
    table.remove(ids_of(9))
    with pytest.raises(TableFull, match="table 'item' holds rows_max = 3"):
        table.find_or_insert(ids_of(1, 2, 3, 4))
    rows = by_id(table.export())
    assert rows.ids.tolist() == [1, 2, 3]
    assert_same_bits(rows.weights, initial)
    assert rows.counts.tolist() == [0, 0, 0]


def test_a_load_that_does_not_fit_leaves_whole_rows() -> None:
    trained, small = table_of(), table_of(rows_max=2)
    learn(trained, 1, 2, 3)
    rows = trained.cut()
    with pytest.raises(TableFull):
        small.load(rows)
    assert_same_bits(small.export().weights, rows.weights[:2])
    assert_same_bits(small.export().slots, rows.slots[:2])


@pytest.mark.parametrize("shape", [(5, 4), (4, 0)])
def test_rows_of_another_shape_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=r"tables\.item: the rows have .* cannot change"):
        table_of().load(TableRows.empty(*shape))


def test_a_table_for_serving_holds_weights_only_and_knows_unseen_rows() -> None:
    trained, serving = table_of(), table_of(optimizer=None)
    learn(trained, 1, 2)
    cut = trained.cut()
    weights_only = TableRows(cut.ids, cut.weights, np.empty((2, 0), np.float32), cut.counts, cut.last_steps)
    serving.load(weights_only)
    assert_same_bits(serving.lookup(ids_of(2, 7, 1)), trained.lookup(ids_of(2, 7, 1)))
    assert len(serving) == 2 and serving.memory_bytes < trained.memory_bytes


def test_many_threads_may_look_up_at_once() -> None:
    table = table_of(rows_max=20_000)
    table.find_or_insert(np.arange(10_000, dtype=np.uint64))
    ids = np.arange(0, 20_000, 2, dtype=np.uint64)
    expected, found = table.lookup(ids), []
    threads = [threading.Thread(target=lambda: found.append(table.lookup(ids))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for vectors in found:
        assert_same_bits(vectors, expected)
