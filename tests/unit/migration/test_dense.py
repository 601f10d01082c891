"""Dense parameters under another schema: each stays with what it was learned for."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from streamtrain.config import Job, parse_job
from streamtrain.dense.model import Features, Model, build_model, features_of
from streamtrain.dense.net import DenseNet
from streamtrain.dense.state import named_arrays
from streamtrain.migration.dense import moved

SLOTS: dict[str, Any] = {
    "user": {"table": "a"},
    "item": {"table": "a"},
    "price": {"kind": "dense"},
}


def job(slots: dict[str, Any] = SLOTS, dims: dict[str, int] | None = None, **changes: Any) -> Job:
    return parse_job(
        {
            "name": "m",
            "source": {"kind": "files", "paths": ["x.jsonl"]},
            "schema": {"labels": ["click"], "slots": slots},
            "tables": {name: {"dim": dim} for name, dim in (dims or {"a": 4}).items()},
            "model": {"kind": "mlp", "hidden": [5]},
            "log": {"path": "log"},
            **changes,
        },
        "a test",
    )


def learned(of: Job) -> dict[str, np.ndarray]:
    """Dense state with a number of its own in every place."""
    net = DenseNet(of.layout, of.model, of.optimizer, seed=1, batch_size=8)
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(size=a.shape).astype(a.dtype) if a.dtype == np.float32 else a + 3
        for name, a in net.state().items()
    }


def logits(of: Job, arrays: dict[str, np.ndarray], columns: dict[tuple[str, int], float]) -> float:
    """The logit of a sample given by what each of its columns holds; columns that are not named hold 0."""
    model = build_model(of.layout, of.model)
    pooled = np.array(
        [[columns.get((c.name, d), 0.0) for c in of.layout.pooled for d in range(c.dim)]], np.float32
    )
    dense = np.array(
        [[columns.get((c.name, i), 0.0) for c in of.layout.dense for i in range(c.size)]], np.float32
    )
    tree: dict[str, Any] = {}
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    names = named_arrays(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes))
    leaves = [arrays[f"params/{name}"] for name in names]
    tree = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
    return float(model.apply(tree, features_of(model.inputs, pooled, {}, dense))[0, 0])


SAMPLE = {("user", 0): 1.0, ("user", 3): -2.0, ("item", 1): 0.5, ("item", 2): 0.25, ("price", 0): 2.0}
EXTRA: dict[str, Any] = {
    "ad": {"table": "b"},
    "item": {"table": "a"},
    "age": {"kind": "dense", "size": 2},
    "user": {"table": "a"},
    "price": {"kind": "dense"},
}


@pytest.mark.parametrize("model", [{"kind": "mlp", "hidden": [5]}, {"kind": "deepfm", "hidden": [5]}])
def test_new_slots_in_any_order_leave_the_score_of_the_old_ones_as_it_was(model: dict[str, Any]) -> None:
    before = job(model=model)
    after = job(EXTRA, {"a": 4, "b": 4}, model=model)
    arrays = learned(before)
    move = moved(arrays, before, after)
    assert move.mapped == ["layers/0/kernel"] and not move.begun and not move.optimizer_begun
    assert set(move.kept) == {"layers/0/bias", "layers/1/kernel", "layers/1/bias"}
    assert logits(after, move.arrays, SAMPLE) == pytest.approx(logits(before, arrays, SAMPLE), rel=1e-5)
    DenseNet(after.layout, after.model, after.optimizer, seed=1, batch_size=8).load(move.arrays)


def test_a_larger_dim_keeps_the_columns_there_were_and_a_smaller_one_the_first() -> None:
    before = job()
    arrays = learned(before)
    for dim in (6, 2):
        after = job(dims={"a": dim})
        kept = {place: value for place, value in SAMPLE.items() if place[0] == "price" or place[1] < dim}
        move = moved(arrays, before, after)
        assert logits(after, move.arrays, kept) == pytest.approx(logits(before, arrays, kept), rel=1e-5)


def test_optimizer_state_goes_with_its_parameter_and_counts_go_on() -> None:
    before, after = job(), job(EXTRA, {"a": 4, "b": 4})
    arrays = learned(before)
    move = moved(arrays, before, after)
    assert move.arrays["optimizer/0/count"] == arrays["optimizer/0/count"]
    assert np.array_equal(
        move.arrays["optimizer/0/mu/layers/1/kernel"], arrays["optimizer/0/mu/layers/1/kernel"]
    )
    # Old order: user 0 to 3, item 4 to 7, price 8; new: ad 0 to 3, item 4 to 7, user 8 to 11, age 12 and 13, price 14.
    old, new = arrays["optimizer/0/nu/layers/0/kernel"], move.arrays["optimizer/0/nu/layers/0/kernel"]
    assert np.array_equal(new[[*range(8, 12), *range(4, 8), 14]], old)
    assert not new[[0, 1, 2, 3, 12, 13]].any()


def test_another_dense_optimizer_begins_anew_and_keeps_the_parameters() -> None:
    before, after = job(), job(optimizer={"kind": "adagrad"})
    arrays = learned(before)
    move = moved(arrays, before, after)
    assert move.optimizer_begun and len(move.kept) == 4
    fresh = DenseNet(after.layout, after.model, after.optimizer, seed=0, batch_size=8).state()
    for name, array in move.arrays.items():
        assert np.array_equal(array, (arrays if name.startswith("params/") else fresh)[name])


def test_layers_of_another_width_begin_anew_and_so_does_another_kind_of_model() -> None:
    before = job()
    wider = moved(learned(before), before, job(model={"kind": "mlp", "hidden": [7]}))
    assert set(wider.begun) == {"layers/0/kernel", "layers/0/bias", "layers/1/kernel"}
    assert wider.kept == ["layers/1/bias"]
    deeper = moved(learned(before), before, job(model={"kind": "mlp", "hidden": []}))
    assert "layers/1/kernel" in deeper.dropped
    other = moved(learned(before), before, job(model={"kind": "deepfm", "hidden": [5]}))
    assert not other.kept and not other.mapped and len(other.begun) == 4


def test_din_moves_the_interest_and_keeps_the_attention() -> None:
    history = {"kind": "sequence", "shares": "item", "length_max": 4, "pooling": "none"}
    din = {"kind": "din", "hidden": [5], "attention_hidden": [3]}
    before = job(SLOTS | {"recent": history}, model=din)
    after = job({"ad": {"table": "b"}} | SLOTS | {"recent": history}, {"a": 4, "b": 2}, model=din)
    arrays = learned(before)
    move = moved(arrays, before, after)
    assert move.mapped == ["layers/0/kernel"] and "attention/recent/0/kernel" in move.kept
    assert np.array_equal(move.arrays["params/layers/0/kernel"][2:], arrays["params/layers/0/kernel"])


def test_linear_keeps_the_weights_of_its_dense_slots() -> None:
    linear = {"kind": "linear"}
    before = job(dims={"a": 1}, model=linear)
    after = job(EXTRA, {"a": 1, "b": 1}, model=linear)
    arrays = learned(before)
    kernel = moved(arrays, before, after).arrays["params/kernel"]
    assert kernel.shape == (3, 1) and kernel[2] == arrays["params/kernel"][0]


class Secretive(Model):
    """A user's model that does not say what its parameters' places are."""

    def init(self, key: jax.Array) -> Any:
        return {"kernel": jax.random.normal(key, (self.inputs.pooled_width, 1))}

    def apply(self, params: Any, features: Features) -> jax.Array:
        return features.pooled_flat @ params["kernel"]


def test_a_model_that_does_not_name_its_columns_begins_anew_where_slots_change_even_in_order_alone() -> None:
    secretive = {"kind": f"{__name__}:Secretive"}
    before = job(model=secretive)
    same = moved(learned(before), before, job(model=secretive, optimizer={"kind": "sgd"}))
    assert same.kept == ["kernel"]
    swapped = {"item": SLOTS["item"], "user": SLOTS["user"], "price": SLOTS["price"]}
    assert moved(learned(before), before, job(swapped, model=secretive)).begun == ["kernel"]
