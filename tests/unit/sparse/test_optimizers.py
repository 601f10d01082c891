"""Row optimizers: what the formulas promise; the bits are held against the slow twin in tests/property."""

from __future__ import annotations

import numpy as np
import pytest

from streamtrain.sparse.optimizers import row_optimizer, slots_of
from streamtrain.sparse.settings import AnyOptimizer, Constant, Ftrl, Normal
from streamtrain.sparse.table import EmbeddingTable
from tests.unit.sparse.cases import OPTIMIZERS

IDS = np.array([11, 12], np.uint64)


def table_of(optimizer: AnyOptimizer, dim: int = 5, std: float = 0.1) -> EmbeddingTable:
    return EmbeddingTable("t", dim, init=Normal(std=std), seed=1, rows_max=100, optimizer=optimizer)


def learn(table: EmbeddingTable, gradients: np.ndarray, occurrences: int = 1, step: int = 1) -> None:
    rows = table.find_or_insert(IDS[: len(gradients)])
    counts = np.full(len(gradients), occurrences, np.uint32)
    assert table.learn(rows, gradients.astype(np.float32), counts, step)
    table.keep_learned(rows)


@pytest.mark.parametrize(
    ("kind", "slots"), [("sgd", 0), ("adagrad", 5), ("rowwise_adagrad", 1), ("adam", 11), ("ftrl", 10)]
)
def test_an_optimizer_keeps_the_floats_that_it_says(kind: str, slots: int) -> None:
    assert slots_of(OPTIMIZERS[kind], 5) == row_optimizer(OPTIMIZERS[kind], 5).slots == slots
    assert table_of(OPTIMIZERS[kind]).cut().slots.shape == (0, slots)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_optimizer_finds_the_bottom_of_a_bowl(kind: str) -> None:
    optimizer = OPTIMIZERS[kind].model_copy(update={"l2": 0.0, "l1": 0.0} if kind == "ftrl" else {"l2": 0.0})
    table, bottom = table_of(optimizer), np.linspace(-0.5, 0.5, 10, dtype=np.float32).reshape(2, 5)
    for step in range(2000):
        learn(table, table.lookup(IDS) - bottom, step=step)
    np.testing.assert_allclose(table.lookup(IDS), bottom, atol=0.02)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_only_the_rows_of_the_minibatch_are_touched(kind: str) -> None:
    table = table_of(OPTIMIZERS[kind])
    learn(table, np.ones((2, 5)))
    before = table.cut()
    learn(table, np.ones((1, 5)))
    assert table.cut().ids.tolist() == [11]
    after = table.export()
    assert after.weights[1].tobytes() == before.weights[1].tobytes()
    assert after.weights[0].tobytes() != before.weights[0].tobytes()


def test_counts_stay_at_their_largest_value_and_last_steps_wrap() -> None:
    table = table_of(OPTIMIZERS["sgd"])
    learn(table, np.zeros((2, 5)), occurrences=2**32 - 2, step=2**32 + 5)
    learn(table, np.zeros((1, 5)), occurrences=1, step=7)
    assert table.export().counts.tolist() == [2**32 - 1, 2**32 - 2]
    learn(table, np.zeros((2, 5)), occurrences=3, step=2**33 + 1)
    assert table.export().counts.tolist() == [2**32 - 1, 2**32 - 1]
    assert table.export().last_steps.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("alpha", "beta", "l1", "l2"), [(0.1, 1.0, 0.0, 0.0), (0.5, 0.3, 0.7, 0.2), (1, 0, 0.5, 0)]
)
def test_ftrl_starts_from_the_initial_weights(alpha: float, beta: float, l1: float, l2: float) -> None:
    table = table_of(Ftrl(kind="ftrl", alpha=alpha, beta=beta, l1=l1, l2=l2), std=1.0)
    initial = table.lookup(IDS)
    learn(table, np.zeros((2, 5)))
    if beta or l2:
        np.testing.assert_allclose(table.lookup(IDS), initial, rtol=1e-5)
    else:
        # Without a gradient the formula divides 0 by 0; nothing is learned, and nothing is broken.
        assert np.isfinite(table.lookup(IDS)).all()


def test_ftrl_makes_weights_exactly_zero_below_l1() -> None:
    optimizer = Ftrl(kind="ftrl", alpha=0.1, l1=1.0)
    table = EmbeddingTable("t", 3, init=Constant(kind="constant"), seed=1, rows_max=9, optimizer=optimizer)
    learn(table, np.array([[0.9, -0.9, 1.5]]))
    weights = table.lookup(IDS[:1])[0]
    assert weights[0] == 0 and weights[1] == 0 and weights[2] < 0


def test_adam_corrects_the_bias_by_the_rows_own_number_of_updates() -> None:
    table = table_of(OPTIMIZERS["adam"].model_copy(update={"l2": 0.0}))
    initial = table.lookup(IDS)
    learn(table, np.ones((1, 5)), step=1)
    for step in range(2, 6):
        learn(table, np.ones((1, 5)), step=step)
    learn(table, np.full((2, 5), 3.0), step=6)
    # A first update moves by the learning rate whatever the gradient's size, also at step 6.
    np.testing.assert_allclose(initial[1] - table.lookup(IDS)[1], 0.01, rtol=1e-3)
    assert table.export().slots[:, -1].tolist() == [6, 1]
