"""Rows under other settings: what stays, what is cut, what starts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from streamtrain.log.record import TableRows
from streamtrain.migration.rows import carried_over, keeps_rows
from streamtrain.sparse.lifecycle_settings import Decay
from streamtrain.sparse.optimizers import slots_of
from streamtrain.sparse.settings import TableSettings
from streamtrain.sparse.table import EmbeddingTable
from streamtrain.sparse.tables import AnyTable

IDS = np.array([3, 2**63, 7], np.uint64)
STEP = 20
OPTIMIZERS = ["sgd", "adagrad", "rowwise_adagrad", "adam", "ftrl"]


def table(dim: int, optimizer: str = "adagrad", **changes: Any) -> TableSettings:
    return TableSettings.model_validate({"dim": dim, "optimizer": {"kind": optimizer}, **changes})


def learned(settings: TableSettings) -> TableRows:
    """Rows that hold a number of their own in every place."""
    dim, slots = settings.dim, slots_of(settings.optimizer, settings.dim)
    values = np.arange(1, 1 + len(IDS) * (dim + slots), dtype=np.float32).reshape(len(IDS), -1)
    return TableRows(
        IDS,
        values[:, :dim].copy(),
        values[:, dim:].copy(),
        np.array([1, 2, 3], np.uint32),
        np.array([9, 8, 7], np.uint32),
    )


def started(settings: TableSettings, seed: int = 5) -> TableRows:
    """What new rows of these ids hold."""
    fresh = EmbeddingTable(
        "t", settings.dim, init=settings.init, seed=seed, rows_max=8, optimizer=settings.optimizer
    )
    fresh.find_or_insert(IDS)
    return fresh.export()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dim", [2, 5])
def test_weights_and_their_state_stay_and_new_ones_start_as_in_a_new_row(optimizer: str, dim: int) -> None:
    before, after = table(3, optimizer), table(dim, optimizer)
    rows, fresh = learned(before), started(after)
    carried = carried_over("t", rows, before, after, 5, STEP)
    kept = min(3, dim)
    assert np.array_equal(carried.weights[:, :kept], rows.weights[:, :kept])
    assert np.array_equal(carried.weights[:, kept:], fresh.weights[:, kept:])
    assert carried.slots.shape == fresh.slots.shape
    vectors = {"adagrad": 1, "adam": 2, "ftrl": 2}.get(optimizer, 0)
    for vector in range(vectors):
        old, new = rows.slots[:, 3 * vector :], carried.slots[:, dim * vector : dim * (vector + 1)]
        assert np.array_equal(new[:, :kept], old[:, :kept])
        assert np.array_equal(new[:, kept:], fresh.slots[:, dim * vector + kept : dim * (vector + 1)])
    assert np.array_equal(carried.slots[:, dim * vectors :], rows.slots[:, 3 * vectors :])
    assert carried.counts is rows.counts and carried.last_steps is rows.last_steps


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_another_optimizer_begins_its_state_anew_and_keeps_the_weights(optimizer: str) -> None:
    before = table(3, "sgd" if optimizer != "sgd" else "adam")
    carried = carried_over("t", learned(before), before, table(3, optimizer), 5, STEP)
    assert np.array_equal(carried.weights, learned(before).weights)
    if optimizer == "ftrl":
        # z is what gives the weight back: an update without a gradient keeps it.
        net = EmbeddingTable(
            "t", 3, init=before.init, seed=5, rows_max=8, optimizer=table(3, "ftrl").optimizer
        )
        net.load(carried)
        rows = net.find_or_insert(IDS)
        net.learn(rows, np.zeros((3, 3), np.float32), np.ones(3, np.uint32), 1)
        assert np.allclose(net.lookup(IDS), carried.weights, rtol=1e-6)
    else:
        assert np.array_equal(carried.slots, started(table(3, optimizer)).slots)


@pytest.mark.parametrize(
    "changes",
    [
        {"rows_max": 99, "init": {"kind": "uniform", "scale": 0.5}},
        {"optimizer": {"kind": "adagrad", "learning_rate": 0.5}},
        {"memory_bytes_max": 1 << 20},
        {"admission": {"kind": "count", "threshold": 3}, "unadmitted": "zero"},
        {"expiry": {"after_steps": 5}},
    ],
)
def test_what_says_nothing_about_what_is_in_a_row_may_change_without_touching_one(
    changes: dict[str, Any],
) -> None:
    before = table(3)
    after = TableSettings.model_validate({"dim": 3, "optimizer": {"kind": "adagrad"}} | changes)
    rows = learned(before)
    assert keeps_rows(before, after, False) and carried_over("t", rows, before, after, 5, STEP) is rows


def hashed(**changes: Any) -> AnyTable:
    kinds: TypeAdapter[AnyTable] = TypeAdapter(AnyTable)
    return kinds.validate_python({"kind": "hash", "dim": 4, "rows": 100} | changes)


def test_a_table_of_another_kind_size_or_seed_keeps_nothing_where_its_rows_are_shared() -> None:
    concat = {"kind": "multi_hash", "combine": "concat"}
    assert not keeps_rows(table(4), hashed(), True)
    assert not keeps_rows(hashed(), hashed(rows=101), True)
    assert not keeps_rows(hashed(**concat), hashed(**concat, dim=8), True)
    assert not keeps_rows(hashed(), hashed(), False)
    assert keeps_rows(hashed(), hashed(optimizer={"kind": "adam"}, dim=6), True)
    assert keeps_rows(hashed(**concat), hashed(**concat, optimizer={"kind": "adam"}), True)


def test_rows_of_a_product_are_padded_as_they_start() -> None:
    sizes = {"kind": "multi_hash", "rows": [7, 5], "combine": "multiply"}
    before, after = hashed(**sizes, dim=2), hashed(**sizes, dim=3)
    ids = np.array([3, (1 << 32) + 4], np.uint64)
    steps = np.zeros(2, np.uint32)
    rows = TableRows(ids, np.full((2, 2), 9, np.float32), np.ones((2, 2), np.float32), steps, steps)
    carried = carried_over("t", rows, before, after, 5, STEP)
    fresh = EmbeddingTable("t", 3, init=after.init, seed=5, rows_max=12, hashing=after.hashing).lookup(ids)
    assert np.array_equal(carried.weights, np.column_stack([rows.weights, fresh[:, 2]]))
    assert abs(fresh[1, 2] - 1) < 0.1 > abs(fresh[0, 2])


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adam"])
def test_where_decay_changes_rows_are_what_they_have_become_and_count_from_there(optimizer: str) -> None:
    """A table with the rows as they were and one with those carried over look the same at the step, and fade on."""
    old = Decay(every_steps=4, weights=0.5, slots=0.5)
    for new in (None, Decay(every_steps=8, weights=0.9), old):
        before = table(3, optimizer).model_copy(update={"decay": old})
        after = table(3, optimizer if new is not old else "rowwise_adagrad").model_copy(update={"decay": new})
        rows = learned(before)
        carried = carried_over("t", rows, before, after, 5, STEP)
        # Rows were updated at 9, 8 and 7: the multiples of 4 since are 12, 16 and 20, and 8 for the last.
        faded = rows.weights * np.array([[0.5**3], [0.5**3], [0.5**4]], np.float32)
        assert np.array_equal(carried.weights, faded)
        if new is not old and optimizer != "sgd":
            assert np.array_equal(carried.slots[:, 0], rows.slots[:, 0] * (faded[:, 0] / rows.weights[:, 0]))
            kept = carried.slots[:, -1] == rows.slots[:, -1]
            assert kept.all() == (optimizer == "adam")
        assert carried.last_steps.tolist() == [STEP] * 3 and np.array_equal(carried.counts, rows.counts)
        served = EmbeddingTable(
            "t", 3, init=after.init, seed=5, rows_max=8, optimizer=after.optimizer, decay=new
        )
        served.load(carried)
        served.at(STEP + 4)
        factor = {None: 1.0, old: 0.5}.get(new, 0.9)
        assert np.array_equal(served.lookup(IDS), faded * np.float32(factor))
    assert rows.last_steps.tolist() == [9, 8, 7], "what was read is not written to"


def test_a_table_that_begins_to_decay_does_not_make_up_for_the_past() -> None:
    before = table(3)
    after = before.model_copy(update={"decay": Decay(every_steps=4, weights=0.5)})
    carried = carried_over("t", learned(before), before, after, 5, STEP)
    assert np.array_equal(carried.weights, learned(before).weights)
    assert carried.last_steps.tolist() == [STEP] * 3


def test_more_rows_than_a_piece_are_carried_each_by_its_own_id() -> None:
    ids = np.arange(1, 70_001, dtype=np.uint64)
    before, after = table(1, "sgd"), table(2, "sgd")
    zeros = np.zeros(len(ids), np.uint32)
    rows = TableRows(ids, ids.astype(np.float32)[:, None], np.empty((len(ids), 0), np.float32), zeros, zeros)
    carried = carried_over("t", rows, before, after, 5, STEP)
    fresh = EmbeddingTable("t", 2, init=after.init, seed=5, rows_max=1)
    assert np.array_equal(carried.weights[:, 0], rows.weights[:, 0])
    assert np.array_equal(
        carried.weights[[0, 65_536, 69_999], 1], fresh.lookup(ids[[0, 65_536, 69_999]])[:, 1]
    )
