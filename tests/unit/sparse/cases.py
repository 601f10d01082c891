"""Layouts, settings and minibatches for the tests of the sparse half."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from streamtrain.layout import Layout
from streamtrain.log.record import TableRows
from streamtrain.samples.batch import Ragged, SampleBatch
from streamtrain.samples.schema import Schema, SequenceSlot, SparseSlot
from streamtrain.sparse.settings import (
    Adagrad,
    Adam,
    AnyOptimizer,
    Ftrl,
    Normal,
    RowwiseAdagrad,
    Sgd,
    TableSettings,
    Uniform,
)

OPTIMIZERS: dict[str, AnyOptimizer] = {
    "sgd": Sgd(kind="sgd", learning_rate=0.3, l2=0.01),
    "adagrad": Adagrad(learning_rate=0.2, l2=0.001),
    "rowwise_adagrad": RowwiseAdagrad(kind="rowwise_adagrad", learning_rate=0.2, l2=0.001),
    "adam": Adam(kind="adam", learning_rate=0.01, l2=0.001),
    "ftrl": Ftrl(kind="ftrl", alpha=0.5, l1=0.05, l2=0.1),
}

SCHEMA = Schema(
    labels=["click"],
    slots={
        "user": SparseSlot(table="user"),
        "item": SparseSlot(table="item"),
        "tags": SparseSlot(many=True, pooling="mean", table="item"),
        "interests": SparseSlot(many=True, weights="shares", pooling="weighted", table="item"),
        "history": SequenceSlot(kind="sequence", length_max=3, shares="item"),
        "old_history": SequenceSlot(kind="sequence", length_max=2, pooling="mean", shares="item"),
        "sessions": SequenceSlot(kind="sequence", length_max=2, table="user"),
    },
)
SLOTS = tuple(SCHEMA.slots)
DIMS = {"user": 3, "item": 18}
LAYOUT = Layout.of(SCHEMA, DIMS)

GOLDEN_INVERSE = pow(0x9E3779B97F4A7C15, -1, 2**64)


def table_settings(optimizer: AnyOptimizer, *, rows_max: int = 100_000) -> dict[str, TableSettings]:
    """Two tables that differ in dim and initial distribution."""
    return {
        "user": TableSettings(
            dim=3, optimizer=optimizer, init=Uniform(kind="uniform", scale=0.1), rows_max=rows_max
        ),
        "item": TableSettings(dim=18, optimizer=optimizer, init=Normal(std=0.1), rows_max=rows_max),
    }


def colliding(number: int) -> int:
    """The number-th of 2^32 ids that share one tag and so one home slot, in every size of map."""
    product = number * GOLDEN_INVERSE % 2**64
    return product ^ product >> 32


def ragged(lists: Sequence[Sequence[int]], weights: Sequence[Sequence[float]] | None = None) -> Ragged:
    """The ids of one slot, from a list a sample."""
    offsets = np.zeros(len(lists) + 1, np.int64)
    offsets[1:] = np.cumsum([len(ids) for ids in lists])
    values = np.array([id for ids in lists for id in ids], np.uint64)
    flat = None if weights is None else np.array([w for ws in weights for w in ws], np.float32)
    return Ragged(values, offsets, flat)


def batch_of(ids: Mapping[str, Ragged]) -> SampleBatch:
    """A minibatch that has nothing but ids."""
    size = len(next(iter(ids.values())).offsets) - 1
    return SampleBatch(
        size,
        dict(ids),
        np.zeros((size, 0), np.float32),
        np.zeros((size, 1), np.float32),
        np.ones(size, np.float32),
        np.zeros(size, np.int64),
        np.zeros(size, np.int64),
    )


def random_batch(rng: np.random.Generator, size: int, ids: int = 50, longest: int = 4) -> SampleBatch:
    """A minibatch of `LAYOUT` whose slots hold 0 to `longest` ids below `ids` a sample."""
    slots = {}
    for name in SLOTS:
        lists = [rng.integers(0, ids, rng.integers(0, longest + 1)).tolist() for _ in range(size)]
        weights = [rng.normal(size=len(ids)).tolist() for ids in lists] if name == "interests" else None
        slots[name] = ragged(lists, weights)
    return batch_of(slots)


def random_gradients(rng: np.random.Generator, padded: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Gradients of activations of `LAYOUT`, not 0 in the padding either."""
    pooled = rng.normal(size=(padded, LAYOUT.pooled_width)).astype(np.float32)
    sequences = {
        s.name: rng.normal(size=(padded, s.length_max, s.dim)).astype(np.float32) for s in LAYOUT.sequences
    }
    return pooled, sequences


def assert_same_bits(left: np.ndarray, right: np.ndarray) -> None:
    """Equal in shape, type and every bit; NaNs and signs of zeros count."""
    assert left.dtype == right.dtype and left.shape == right.shape
    assert left.tobytes() == right.tobytes()


def assert_same_rows(left: TableRows, right: TableRows) -> None:
    """Equal bit for bit, in the same order."""
    for name in ("ids", "weights", "slots", "counts", "last_steps", "tombstones"):
        assert_same_bits(getattr(left, name), getattr(right, name))


def by_id(rows: TableRows) -> TableRows:
    """The rows in ascending order of their ids."""
    order = np.argsort(rows.ids)
    columns = (rows.ids, rows.weights, rows.slots, rows.counts, rows.last_steps)
    return TableRows(*(column[order] for column in columns), np.sort(rows.tombstones))
