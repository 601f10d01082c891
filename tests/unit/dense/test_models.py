"""Each built-in against its slow twin, what it refuses, and the structure that it must be able to learn."""

import re

import numpy as np
import pytest

from streamtrain.dense.model import build_model, parse_settings
from streamtrain.dense.optimizers import DenseSgd
from streamtrain.errors import ConfigError
from tests import reference_dense as reference
from tests.unit.dense.toy import Problem, auc, layout_of, minibatch, net_of, prequential_logits, taste

HISTORIES = {"history": (5, 4, "item"), "skipped": (3, 4, "item")}
TARGETS = {"history": "item", "skipped": "item"}
SMALL = {"hidden": [7, 5], "activation": "prelu"}

CASES = {
    "linear, two labels": (
        "linear",
        layout_of({"a": 2, "b": 2}, dense=3, labels=("x", "y")),
        {},
        reference.linear,
    ),
    "mlp": ("mlp", layout_of({"a": 4, "b": 1, "c": 3}, dense=2), {"hidden": [7, 5]}, reference.mlp),
    "mlp, two labels": ("mlp", layout_of({"a": 4}, labels=("x", "y")), SMALL, reference.mlp),
    "mlp of floats alone, no hidden layers": ("mlp", layout_of({}, dense=3), {"hidden": []}, reference.mlp),
    "deepfm, wide": ("deepfm", layout_of({"w": 1, "a": 4, "v": 1, "b": 4, "c": 4}), SMALL, reference.deepfm),
    "deepfm, two labels": (
        "deepfm",
        layout_of({"a": 5, "w": 2, "b": 5}, dense=1, labels=("x", "y")),
        SMALL,
        reference.deepfm,
    ),
    "din": (
        "din",
        layout_of({"item": 4, "user": 2}, sequences=HISTORIES, dense=1),
        {**SMALL, "attention_hidden": [6]},
        reference.din(TARGETS, softmax=False),
    ),
    "din, softmax": (
        "din",
        layout_of({"user": 2, "item": 4}, sequences={"history": (5, 4, None)}, labels=("x", "y")),
        {"hidden": [7], "softmax": True, "target": {"history": "item"}},
        reference.din({"history": "item"}, softmax=True),
    ),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


def float64_inputs(batch, i):
    sequences = {name: np.asarray(vectors[i], np.float64) for name, (vectors, _) in batch.sequences.items()}
    return np.asarray(batch.pooled[i], np.float64), sequences


def one(batch, layout, i, pooled=None, vectors=None):
    """Sample i as the oracles take it; optionally with other pooled rows or sequence vectors."""
    own_pooled, own_vectors = float64_inputs(batch, i)
    row, vectors = own_pooled if pooled is None else pooled, own_vectors if vectors is None else vectors
    slots = {c.name: row[c.start : c.start + c.dim] for c in layout.pooled}
    sequences = {name: (vectors[name], mask[i]) for name, (_, mask) in batch.sequences.items()}
    return slots, sequences, np.asarray(batch.dense[i], np.float64)


def float64(state):
    return {name: np.asarray(array, np.float64) for name, array in state.items()}


def test_logits_gradients_and_step_equal_those_of_the_plain_expression(case):
    kind, layout, options, oracle = case
    rate, size = 0.1, 4
    sgd = DenseSgd(kind="sgd", learning_rate=rate)
    net = net_of(layout, kind, sgd, net_seed=3, label_weights={layout.labels[0]: 1.5}, **options)
    label_weights = np.array([1.5] + [1.0] * (len(layout.labels) - 1))
    batch = minibatch(layout, size, 16, seed=1)
    for _ in range(3):  # so that biases, slopes and scales are not at their initial values
        batch.step(net)
    before = float64(net.state())
    result = batch.step(net)
    after = float64(net.state())

    def loss(i, params=before, **others):
        logits = oracle(params, *one(batch, layout, i, **others))
        return float(batch.weights[i]) * float(
            (reference.cross_entropy(logits, batch.labels[i]) * label_weights).sum()
        )

    assert result.loss == pytest.approx(sum(loss(i) for i in range(size)), rel=1e-5)
    for i in range(size):
        assert result.logits[i] == pytest.approx(oracle(before, *one(batch, layout, i)), abs=2e-5)
        pooled, sequences = float64_inputs(batch, i)
        gradient = reference.gradient(lambda row, i=i: loss(i, pooled=row), pooled)
        assert result.grad_pooled[i] == pytest.approx(gradient, abs=2e-5)
        for name in sequences:
            gradient = reference.gradient(
                lambda v, i=i, name=name, sequences=sequences: loss(i, vectors={**sequences, name: v}),
                sequences[name],
            )
            assert result.grad_sequences[name][i] == pytest.approx(gradient, abs=2e-5)

    def mean_loss(params):
        return sum(loss(i, params) for i in range(size)) / float(batch.weights.sum())

    for name in [n for n in before if n.endswith(("bias", "slope", "pair_scale"))]:
        gradient = reference.gradient(lambda x, name=name: mean_loss({**before, name: x}), before[name])
        assert after[name] == pytest.approx(before[name] - rate * gradient, abs=2e-6), name


@pytest.mark.parametrize(
    ("kind", "options", "dim"), [("deepfm", {"hidden": []}, 5), ("mlp", {"hidden": [32, 16]}, 8)]
)
def test_model_learns_an_interaction_of_two_slots(kind, options, dim):
    layout = layout_of({"user": dim, "item": dim})
    problem = taste(seed=5)
    net = net_of(layout, kind, net_batch_size=64, net_buckets=[64], **options)
    logits = prequential_logits(net, layout, problem)
    assert auc(logits[-3000:, 0], problem.labels[-3000:, 0]) > 0.85


def test_linear_learns_each_id_but_no_interaction():
    layout = layout_of({"user": 1, "item": 1})
    random = np.random.default_rng(0)
    user, item = random.integers(0, 20, 8192), random.integers(0, 20, 8192)
    true = random.normal(0, 2, 20)
    labels = (random.random(8192) < 1 / (1 + np.exp(-true[user]))).astype(np.float32)[:, None]
    problem = Problem({"user": user, "item": item}, labels, 20)
    net = net_of(layout, "linear", net_batch_size=64, net_buckets=[64])
    logits = prequential_logits(net, layout, problem)
    best = auc(true[user][-3000:] + random.normal(0, 1e-6, 3000), labels[-3000:, 0])
    assert auc(logits[-3000:, 0], labels[-3000:, 0]) > best - 0.03
    interaction = taste(seed=5)
    net = net_of(layout, "linear", net_batch_size=64, net_buckets=[64])
    logits = prequential_logits(net, layout, Problem(interaction.ids, interaction.labels, 30))
    assert auc(logits[-3000:, 0], interaction.labels[-3000:, 0]) < 0.6


def test_din_learns_that_an_item_of_the_history_matches_the_candidate():
    random = np.random.default_rng(4)
    count, items = 16_384, 25
    history = random.integers(0, items, (count, 6))
    history[np.arange(6) >= random.integers(1, 7, count)[:, None]] = -1
    item = np.where(random.random(count) < 0.5, random.integers(0, items, count), history[:, 0])
    matches = (history == item[:, None]).any(axis=1)
    labels = (random.random(count) < np.where(matches, 0.9, 0.1)).astype(np.float32)[:, None]
    layout = layout_of({"item": 8}, sequences={"history": (6, 8, "item")})
    problem = Problem({"item": item, "history": history}, labels, items, {"history": "item"})
    net = net_of(layout, "din", net_batch_size=64, net_buckets=[64], hidden=[32])
    logits = prequential_logits(net, layout, problem)
    assert auc(logits[-3000:, 0], labels[-3000:, 0]) > 0.75


def test_labels_have_heads_of_their_own():
    problem = taste(seed=6)
    both = np.concatenate([problem.labels, 1 - problem.labels], axis=1)
    layout = layout_of({"user": 8, "item": 8}, labels=("click", "skip"))
    net = net_of(layout, "mlp", net_batch_size=64, net_buckets=[64], hidden=[32])
    logits = prequential_logits(net, layout, Problem(problem.ids, both, 30))
    for label in (0, 1):
        assert auc(logits[-3000:, label], both[-3000:, label]) > 0.85


SEQUENCE = {"history": (5, 4, "item")}
REFUSED = {
    "dims of linear": ("linear", layout_of({"a": 1, "b": 4}), {}, "set dim = 1 on the table of b"),
    "dims of linear with two labels": ("linear", layout_of({"a": 1}, labels=("x", "y")), {}, "set dim = 2"),
    "sequence": ("linear", layout_of({"a": 1}, sequences=SEQUENCE), {}, 'history): set pooling = "mean"'),
    "sequence in mlp": ("mlp", layout_of({"a": 1}, sequences=SEQUENCE), {}, 'or use model kind = "din"'),
    "nothing": ("mlp", layout_of({}), {}, "nothing to learn from"),
    "unlike dims": (
        "deepfm",
        layout_of({"a": 4, "b": 8, "w": 1}),
        {},
        "a has 4, b has 8: give their tables the same",
    ),
    "no factors": ("deepfm", layout_of({"a": 1, "b": 1}), {}, "set dim above 1 on the table of a, b"),
    "fewer than the labels": (
        "deepfm",
        layout_of({"a": 1, "b": 4}, labels=("x", "y")),
        {},
        "above 2 on the table of a",
    ),
    "no sequence": ("din", layout_of({"a": 4}), {}, "use 'mlp'"),
    "no target": (
        "din",
        layout_of({"a": 4}, sequences={"h": (5, 4, None)}),
        {},
        "set model.target = { h = ... }",
    ),
    "target dim": (
        "din",
        layout_of({"item": 8}, sequences=SEQUENCE),
        {},
        "history has dim 4, its target item 8",
    ),
    "target missing": ("din", layout_of({"a": 4}, sequences=SEQUENCE), {}, "'item' is not a pooled slot"),
    "target of no sequence": (
        "din",
        layout_of({"item": 4}, sequences=SEQUENCE),
        {"target": {"item": "history"}},
        "'item' is not an unpooled sequence slot; there are: history",
    ),
}


@pytest.mark.parametrize(("kind", "layout", "options", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_model_refuses_inputs_that_it_cannot_use_and_says_what_to_do(kind, layout, options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        build_model(layout, parse_settings({"kind": kind, **options}))
