"""Grouped samples teach every model what the same samples teach it one by one, whatever trees they come in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamtrain.config import Job
from streamtrain.dense.model import Features, Model, Params
from streamtrain.dense.models.layers import apply_layers, init_layers
from streamtrain.log.record import EpochRecord
from streamtrain.samples.batch import SampleBatch
from streamtrain.samples.schema import Schema
from streamtrain.serving.model import ServedModel
from streamtrain.serving.scorer import Scorer
from streamtrain.sparse.reader import SparseReader
from streamtrain.training.learner import Learner
from tests.fakes import job
from tests.trees import grouped_batch, random_steps, steps_of_trees

BATCH = 24
NAMES = ["user", "ad", "place"]
ADAGRAD = {"kind": "adagrad", "learning_rate": 0.05}
COLUMNS = ("ids", "weights", "slots", "counts", "last_steps", "tombstones")
CLOSE: dict[str, Any] = {"rtol": 2e-4, "atol": 2e-5}
CASES = [("linear", 1), ("mlp", 3), ("deepfm", 2), ("din", 2), ("unaware", 1)]


class Unaware(Model):
    """A third party's model that has never heard of levels."""

    def init(self, key: jax.Array) -> Params:
        return init_layers(key, [self.inputs.pooled_width + self.inputs.dense_width, 5, 1], "relu")

    def apply(self, params: Params, features: Features) -> jax.Array:
        pooled = jnp.concatenate([*features.pooled.values(), features.dense], axis=1)
        whole = jnp.concatenate([features.pooled_flat, features.dense], axis=1)
        return apply_layers(params, pooled) + whole.sum(axis=1, keepdims=True)


def slots_of(kind: str, depth: int) -> dict[str, Any]:
    """Every pooling at every level; ids of all levels share a table, so that an id occurs at several."""
    slots: dict[str, Any] = {"floats": {"kind": "dense", "size": 2}, "leaf": {"table": "t"}}
    for level in [*NAMES[:depth], None]:
        own = {} if level is None else {"level": level}
        end = level or "own"
        slots[f"id_{end}"] = {"shares": "leaf", **own}
        slots[f"mean_{end}"] = {"shares": "leaf", "many": True, "pooling": "mean", **own}
        slots[f"weighted_{end}"] = {
            "many": True,
            "weights": f"shares_{end}",
            "pooling": "weighted",
            "table": "counted",
            **own,
        }
        slots[f"past_{end}"] = {
            "kind": "sequence",
            "pooling": "sum",
            "table": "counted",
            "length_max": 3,
            **own,
        }
        if kind == "din":
            slots[f"history_{end}"] = {"kind": "sequence", "shares": "leaf", "length_max": 3, **own}
    if kind == "deepfm":
        slots |= {"wide_user": {"table": "wide", "level": "user"}, "wide": {"table": "wide"}}
    return slots


@dataclass(frozen=True)
class Pair:
    """One that learns grouped samples, one that learns the same one by one, and what both begin as."""

    schema: Schema
    job: Job
    grouped: Learner
    flat: Learner
    genesis: EpochRecord


@cache
def pair(kind: str, depth: int) -> Pair:
    model: dict[str, Any] = {"kind": f"{__name__}:Unaware" if kind == "unaware" else kind}
    if kind in ("mlp", "deepfm", "din"):
        model["hidden"] = [6]
    if kind == "din":
        # A target below its history's level, one above it, and one beside it.
        model |= {"target": {"history_user": "leaf", "history_ad": "id_user"}, "softmax": True}
    row = {"dim": 1 if kind == "linear" else 3, "init": {"kind": "normal", "std": 0.3}, "optimizer": ADAGRAD}
    tables = {
        "t": row | {"expiry": {"after_steps": 1, "sweep_steps": 1}},
        "counted": row | {"admission": {"kind": "count", "threshold": 6}},
    }
    if kind == "deepfm":
        tables["wide"] = row | {"dim": 1}
    slots = slots_of(kind, depth)
    schema = {
        "labels": ["click"],
        "slots": slots,
        "levels": [{"name": name, "children": f"under_{name}"} for name in NAMES[:depth]],
    }
    flat_slots = {name: {k: v for k, v in slot.items() if k != "level"} for name, slot in slots.items()}
    jobs = [
        job(
            Path("/nowhere"),
            schema=one,
            tables=tables,
            model=model,
            # Adam would turn the rounding of a gradient that is nearly 0 into a whole step.
            optimizer={"kind": "sgd", "learning_rate": 0.1},
            training={"batch_size": BATCH},
        )
        for one in (schema, {"labels": ["click"], "slots": flat_slots})
    ]
    grouped, flat = map(Learner, jobs)
    return Pair(jobs[0].sample_schema, jobs[0], grouped, flat, flat.genesis({"p": 0}, "topic"))


@pytest.mark.parametrize(("kind", "depth"), CASES)
@settings(max_examples=10)
@given(data=st.data())
def test_grouped_samples_teach_what_they_teach_one_by_one(kind: str, depth: int, data: st.DataObject) -> None:
    made = pair(kind, depth)
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    for learner in (made.grouped, made.flat):
        learner.restore([made.genesis], sequential=False)
    for step in range(3):
        batch = grouped_batch(random, made.schema, data.draw(steps_of_trees(depth, BATCH, 1)))
        flat = batch.expanded()
        np.testing.assert_allclose(scores(made.grouped, batch), scores(made.flat, flat), **CLOSE)
        # A model of grouped samples learns them one by one too.
        given = flat if data.draw(st.booleans()) else batch
        seen, expected = made.grouped.step(given, step), made.flat.step(flat, step)
        assert seen is not None and expected is not None
        np.testing.assert_allclose(seen, expected, **CLOSE)
    check_same_model(made.grouped, made.flat)


def scores(learner: Learner, batch: SampleBatch) -> np.ndarray:
    """What the model says of samples that it does not learn."""
    padded = learner.dense.bucket(batch.size)
    nodes = learner.dense.nodes(padded, [batch.rows(level) for level in learner.layout.levels])
    seen = learner.sparse.score(batch, padded, nodes)
    dense = np.zeros((padded, batch.dense.shape[1]), np.float32)
    dense[: batch.size] = batch.dense
    return learner.dense.predict(seen.pooled, seen.sequences, dense, seen.shared)[: batch.size]


def check_same_model(one: Learner, other: Learner) -> None:
    """Which rows there are, in which order, their counts and what filters count to the bit; weights but for rounding."""
    dense, expected = one.dense.state(), other.dense.state()
    assert dense.keys() == expected.keys()
    for name, array in dense.items():
        np.testing.assert_allclose(array, expected[name], **CLOSE, err_msg=name)
    cuts, others = one.sparse.cut(), other.sparse.cut()
    for table, rows in cuts.items():
        for column in ("ids", "counts", "last_steps", "tombstones"):
            np.testing.assert_array_equal(
                getattr(rows, column), getattr(others[table], column), err_msg=table
            )
        np.testing.assert_allclose(rows.weights, others[table].weights, **CLOSE, err_msg=table)
    (filters, _), (wanted, _) = one.sparse.cut_filters(), other.sparse.cut_filters()
    assert filters.keys() == wanted.keys()
    for table, found in filters.items():
        np.testing.assert_array_equal(found.ids, wanted[table].ids)
        np.testing.assert_array_equal(found.values, wanted[table].values)


@settings(max_examples=10)
@given(steps_of_trees(2, 60, 1), st.integers(1, 20))
def test_the_same_minibatches_leave_the_same_bits_however_trees_were_cut(
    steps: list[int], chunk: int
) -> None:
    """As a replay does: minibatches of one size, made of pieces of another."""
    made = pair("din", 2)
    whole = grouped_batch(np.random.default_rng(len(steps)), made.schema, steps)
    records = np.flatnonzero(np.array([0, *steps[1:]]) == 0).tolist()
    left = {}
    for name, cuts in (("whole", [0, whole.size]), ("records", sorted({0, *records[::2], whole.size}))):
        pieces = [whole.slice(first, end) for first, end in pairwise(cuts)]
        joined = SampleBatch.concat(pieces)
        made.grouped.restore([made.genesis], sequential=False)
        for step, first in enumerate(range(0, whole.size, chunk)):
            made.grouped.step(joined.slice(first, min(first + chunk, whole.size)), step)
        cut = made.grouped.cut()
        left[name] = [
            *cut.dense.values(),
            *(getattr(rows, c) for rows in cut.tables.values() for c in COLUMNS),
        ]
    for one, other in zip(left["whole"], left["records"], strict=True):
        assert one.tobytes() == other.tobytes()


def test_a_request_of_trees_is_scored_as_its_samples_would_be_piece_by_piece() -> None:
    made = pair("mlp", 3)
    made.grouped.restore([made.genesis], sequential=False)
    random = np.random.default_rng(5)
    for step in range(3):
        made.grouped.step(grouped_batch(random, made.schema, random_steps(random, 3, BATCH, 3.0)), step)
    scorer = Scorer(ServedModel.of_job("id", "grouped", made.job.describe()), piece_samples=16)
    reader = SparseReader(scorer.layout, made.grouped.sparse.tables)
    params = scorer.params(made.grouped.dense.state())
    # The second piece begins inside a tree.
    request = grouped_batch(random, made.schema, [0] + [3] * 9 + [2] * 9 + [3] * 5)
    seen, flat = (scorer.predict(params, scorer.gather(reader, r)) for r in (request, request.expanded()))
    np.testing.assert_allclose(seen, flat, rtol=1e-5)
    assert seen.shape == (24, 1) and np.ptp(seen) > 1e-3 and scorer.compilations == 0


def test_ids_of_nodes_are_looked_up_once_a_node() -> None:
    made = pair("mlp", 1)
    made.grouped.restore([made.genesis], sequential=False)
    batch = grouped_batch(np.random.default_rng(1), made.schema, [0] + [1] * 9 + [0] + [1] * 9)
    padded = made.grouped.dense.bucket(batch.size)
    nodes = made.grouped.dense.nodes(padded, [2])
    assert (padded, nodes) == (24, (8,))
    seen = made.grouped.sparse.forward(batch, 0, padded, nodes)
    assert seen.shared.pooled[0].shape == (8, 12) and not seen.shared.pooled[0][2:].any()
    assert seen.shared.parents[0].tolist() == [0] * 10 + [1] * 14
    made.grouped.sparse.discard()


def test_batches_that_do_not_fit_their_padding_are_refused() -> None:
    made = pair("mlp", 1)
    batch = grouped_batch(np.random.default_rng(1), made.schema, [0] * 5)
    with pytest.raises(ValueError, match="5 nodes of level 'user' do not fit into 4 of 8 rows"):
        made.grouped.sparse.forward(batch, 0, 8, [4])
    with pytest.raises(ValueError, match=r"padded nodes \[\] are not those of the levels \['user'\]"):
        made.grouped.sparse.forward(batch, 0, 8)
