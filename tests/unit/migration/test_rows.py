"""Rows under other settings: what stays, what is cut, what starts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from streamtrain.log.record import TableRows
from streamtrain.migration.rows import carried_over, keeps_rows
from streamtrain.sparse.optimizers import slots_of
from streamtrain.sparse.settings import TableSettings
from streamtrain.sparse.table import EmbeddingTable
from streamtrain.sparse.tables import AnyTable

IDS = np.array([3, 2**63, 7], np.uint64)
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
    carried = carried_over("t", rows, before, after, 5)
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
    carried = carried_over("t", learned(before), before, table(3, optimizer), 5)
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


def test_rates_bounds_and_starts_may_change_without_touching_a_row() -> None:
    before = table(3)
    after = table(3, rows_max=99, init={"kind": "uniform", "scale": 0.5})
    after = after.model_copy(update={"optimizer": after.optimizer.model_copy(update={"learning_rate": 0.5})})
    rows = learned(before)
    assert keeps_rows(before, after) and carried_over("t", rows, before, after, 5) is rows


def test_a_table_of_another_kind_or_size_keeps_nothing() -> None:
    kinds: TypeAdapter[AnyTable] = TypeAdapter(AnyTable)
    hashed = kinds.validate_python({"kind": "hash", "dim": 4, "rows": 100})
    assert not keeps_rows(table(4), hashed)
    assert not keeps_rows(hashed, kinds.validate_python({"kind": "hash", "dim": 4, "rows": 101}))
    assert not keeps_rows(hashed, kinds.validate_python({"kind": "hash", "dim": 5, "rows": 100}))
    adam = kinds.validate_python({"kind": "hash", "dim": 4, "rows": 100, "optimizer": {"kind": "adam"}})
    assert keeps_rows(hashed, adam)


def test_more_rows_than_a_piece_are_carried_each_by_its_own_id() -> None:
    ids = np.arange(1, 70_001, dtype=np.uint64)
    before, after = table(1, "sgd"), table(2, "sgd")
    zeros = np.zeros(len(ids), np.uint32)
    rows = TableRows(ids, ids.astype(np.float32)[:, None], np.empty((len(ids), 0), np.float32), zeros, zeros)
    carried = carried_over("t", rows, before, after, 5)
    fresh = EmbeddingTable("t", 2, init=after.init, seed=5, rows_max=1)
    assert np.array_equal(carried.weights[:, 0], rows.weights[:, 0])
    assert np.array_equal(
        carried.weights[[0, 65_536, 69_999], 1], fresh.lookup(ids[[0, 65_536, 69_999]])[:, 1]
    )
