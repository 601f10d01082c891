"""The step: padding, state, compilation, determinism, and models of a user's own."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamtrain.dense.model import Model, build_model, parse_settings
from streamtrain.dense.net import DenseNet
from streamtrain.dense.optimizers import DenseAdam
from streamtrain.errors import ConfigError
from tests.unit.dense.toy import layout_of, minibatch, net_of

LAYOUT = layout_of(
    {"item": 4, "user": 3}, sequences={"history": (5, 4, "item")}, dense=2, labels=("click", "like")
)
OPTIONS = {"hidden": [8], "attention_hidden": [6]}


@pytest.fixture(scope="module")
def net():
    """One compiled net; tests begin by loading the state that they want."""
    net = net_of(LAYOUT, "din", net_buckets=[8, 16], **OPTIONS)
    net.warm_up()
    return net


@pytest.fixture(scope="module")
def genesis(net):
    return net.state()


def bits(result):
    return b"".join(
        [result.logits.tobytes(), result.grad_pooled.tobytes(), result.grad_sequences["history"].tobytes()]
    )


def digest(state):
    return hashlib.sha256(
        b"".join(name.encode() + array.tobytes() for name, array in state.items())
    ).hexdigest()


def test_logits_are_from_before_the_step(net, genesis):
    net.load(genesis)
    batch = minibatch(LAYOUT, 16)
    before = net.predict(*batch.features)
    result = batch.step(net)
    assert result.logits == pytest.approx(before, abs=1e-6)
    assert np.abs(net.predict(*batch.features) - before).max() > 1e-4


@settings(max_examples=15, deadline=None)
@given(size=st.integers(1, 16), seed=st.integers(0, 2**32 - 1))
def test_padding_rows_change_no_bit_whatever_they_hold(net, genesis, size, seed):
    clean, dirty = minibatch(LAYOUT, size, 16, seed=seed), minibatch(LAYOUT, size, 16, seed=seed)
    junk = np.random.default_rng(seed).normal(0, 3, (16 - size, LAYOUT.pooled_width))
    dirty.pooled[size:], dirty.labels[size:] = junk, 1
    results, states = [], []
    for batch in (clean, dirty):
        net.load(genesis)
        results.append(batch.step(net))
        states.append(digest(net.state()))
    assert results[0].logits[:size].tobytes() == results[1].logits[:size].tobytes()
    assert results[0].grad_pooled.tobytes() == results[1].grad_pooled.tobytes()
    assert not results[1].grad_pooled[size:].any() and not results[1].grad_sequences["history"][size:].any()
    assert results[0].loss == results[1].loss
    assert states[0] == states[1]


def test_a_larger_bucket_gives_the_same_numbers(net, genesis):
    results, states = [], []
    for padded in (8, 16):
        net.load(genesis)
        small = minibatch(LAYOUT, 6, padded, seed=3)
        results.append(small.step(net))
        states.append(net.state())
    assert results[0].logits[:6] == pytest.approx(results[1].logits[:6], abs=1e-6)
    assert results[0].grad_pooled[:6] == pytest.approx(results[1].grad_pooled[:6], abs=1e-6)
    for name in genesis:
        assert states[0][name] == pytest.approx(states[1][name], abs=2e-5), name


def test_a_minibatch_of_no_weight_teaches_nothing(net, genesis):
    net.load(genesis)
    batch = minibatch(LAYOUT, 8)
    batch.weights[:] = 0
    result = batch.step(net)
    assert result.loss == 0 and not result.grad_pooled.any()
    after = net.state()
    assert all(np.array_equal(after[name], genesis[name]) for name in genesis if name.startswith("params/"))


def test_state_goes_on_with_the_same_bits_in_a_net_of_another_seed(net, genesis):
    net.load(genesis)
    for seed in range(5):
        minibatch(LAYOUT, 16, seed=seed).step(net)
    middle = net.state()
    other = net_of(LAYOUT, "din", net_seed=1, **OPTIONS)
    assert digest(other.state()) != digest(genesis)
    other.load(middle)
    for seed in range(5, 8):
        batch = minibatch(LAYOUT, 16, seed=seed)
        assert bits(batch.step(net)) == bits(batch.step(other))
    assert digest(net.state()) == digest(other.state())


def test_state_holds_stable_names_and_plain_types(genesis):
    assert genesis["params/layers/0/kernel"].shape == (4 + 3 + 2 + 4, 8)
    assert genesis["params/attention/history/1/kernel"].shape == (6, 1)
    assert genesis["optimizer/0/mu/layers/0/kernel"].shape == (13, 8)
    assert genesis["optimizer/0/count"].dtype == np.int32 and genesis["optimizer/0/count"].shape == ()
    assert {array.dtype for name, array in genesis.items() if name != "optimizer/0/count"} == {
        np.dtype(np.float32)
    }


def test_state_and_results_are_out_of_reach_of_later_steps(net, genesis):
    loaded = {name: array.copy() for name, array in genesis.items()}
    net.load(loaded)
    state, result = net.state(), minibatch(LAYOUT, 16).step(net)
    before = (digest(state), bits(result))
    for array in loaded.values():
        array[...] = 7
    for seed in range(3):
        minibatch(LAYOUT, 16, seed=seed).step(net)
    assert (digest(state), bits(result)) == before
    assert digest(state) == digest(genesis)
    assert digest(loaded) != digest(genesis)


def _without(state):
    state.pop("params/layers/0/bias")


def _reshaped(state):
    state["params/layers/0/bias"] = np.zeros(9, np.float32)


def _wider(state):
    state["params/layers/0/bias"] = np.zeros(8)


def _unknown(state):
    state["params/more"] = np.zeros(1, np.float32)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without, "params/layers/0/bias is missing"),
        (_reshaped, r"params/layers/0/bias is float32\[9\], the model's is float32\[8\]"),
        (_wider, r"params/layers/0/bias is float64\[8\], the model's is float32\[8\]"),
        (_unknown, "the model has no params/more"),
    ],
)
def test_state_of_another_model_is_refused_and_changes_nothing(net, genesis, damage, message):
    net.load(genesis)
    state = net.state()
    damage(state)
    with pytest.raises(ConfigError, match=message):
        net.load(state)
    assert digest(net.state()) == digest(genesis)


def test_nothing_compiles_after_warm_up(net, genesis):
    compiled = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for size in (1, 8, 9, 16):
            minibatch(LAYOUT, size, net.bucket(size)).step(net)
            net.predict(*minibatch(LAYOUT, size, net.bucket(size)).features)
        net.load(net.state())
        assert (net.compilations, compiled) == (0, [])
        jax.jit(lambda x: x * 3.25)(np.zeros(3))
        assert compiled, "the listener hears compilations"
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_a_compilation_that_samples_wait_for_is_counted(caplog):
    late = net_of(layout_of({"a": 1}), "linear")
    minibatch(layout_of({"a": 1}), 16).step(late)
    assert late.compilations == 1
    assert "compiling step for 16 rows while they wait" in caplog.text


_CHILD = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from tests.unit.dense.test_net import wide_digest
sys.stdout.write(wide_digest())
"""


def wide_digest():
    """Digest of the state after three steps that are large enough for XLA to share them among threads."""
    layout = layout_of({f"slot{i}": 9 for i in range(40)})
    net = DenseNet(layout, parse_settings({"kind": "mlp"}), batch_size=512, buckets=[512])
    for seed in range(3):
        minibatch(layout, 512, seed=seed).step(net)
    return digest(net.state())


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cannot bind a process to one core here")
def test_bits_do_not_depend_on_the_number_of_cores():
    child = subprocess.run(
        [sys.executable, "-c", _CHILD],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert child.stdout == wide_digest()


class Squared(Model):
    """A user's model with a loss of its own."""

    def init(self, key):
        return {"scale": 1.0 + jax.random.uniform(key)}

    def apply(self, params, features):
        return params["scale"] * features.pooled["a"]

    def loss(self, logits, labels):
        return 0.5 * (logits - labels) ** 2


class Integers(Squared):
    def init(self, key):
        return {"scale": jnp.ones((), jnp.int32)}


class Narrow(Squared):
    def apply(self, params, features):
        return features.pooled["a"][:, 0] * params["scale"]


class Summed(Squared):
    def loss(self, logits, labels):
        return super().loss(logits, labels).sum(1)


class Lost(Squared):
    def apply(self, params, features):
        return features.pooled["absent"]


class Listed(Squared):
    def apply(self, params, features):
        return [features.pooled["a"]]


class Unmade(Squared):
    def __init__(self, inputs, settings):
        raise RuntimeError("boom")


class Uninitial(Squared):
    def init(self, key):
        raise RuntimeError("boom")


class Lossless(Squared):
    def loss(self, logits, labels):
        raise RuntimeError("boom")


def test_a_models_own_loss_is_the_one_that_is_learned():
    layout = layout_of({"a": 1})
    own = net_of(layout, f"{__name__}:Squared")
    batch = minibatch(layout, 10, 16)
    result = batch.step(own)
    weights = batch.weights[:, None]
    assert result.loss == pytest.approx(
        float((weights * 0.5 * (result.logits - batch.labels) ** 2).sum()), rel=1e-5
    )
    scale = result.logits[0] / batch.pooled[0]
    assert result.grad_pooled == pytest.approx(weights * (result.logits - batch.labels) * scale, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (f"{__name__}:Integers", "parameter scale is int32; parameters must be float32"),
        (
            f"{__name__}:Narrow",
            r"Narrow.apply must return float32 logits .* \[16, 1\]; it returned float32\[16\]",
        ),
        (f"{__name__}:Listed", r"Listed.apply must return float32 logits .*; it returned list"),
        # [16] would broadcast with weights of [16, 1] to losses of other samples, without a word.
        (
            f"{__name__}:Summed",
            r"Summed.loss must return float32 losses .* \[16, 1\]; it returned float32\[16\]",
        ),
        (f"{__name__}:Lost", r"Lost': apply failed: KeyError: 'absent' \(raised at .*test_net.py:\d+\)"),
        (
            f"{__name__}:Unmade",
            r"Unmade': making it failed: RuntimeError: boom \(raised at .*test_net.py:\d+\)",
        ),
        (f"{__name__}:Uninitial", r"Uninitial': init failed: RuntimeError: boom"),
        (f"{__name__}:Lossless", r"Lossless': loss failed: RuntimeError: boom"),
        (f"{__name__}:digest", "is not a subclass of streamtrain.dense.model.Model"),
        (f"{__name__}:Absent", "cannot load"),
        ("transformer", "no models plug-in is called 'transformer'"),
    ],
)
def test_a_model_that_breaks_the_contract_is_named(kind, message):
    with pytest.raises(ConfigError, match=message):
        net_of(layout_of({"a": 1}), kind).warm_up()


def test_options_of_a_model_are_checked():
    with pytest.raises(ConfigError, match=r"model\.hidden\.0: Input should be greater than or equal to 1"):
        parse_settings({"kind": "mlp", "hidden": [0]})
    with pytest.raises(ConfigError, match=r"model\.depth: Extra inputs"):
        parse_settings({"kind": "linear", "depth": 3})
    with pytest.raises(ConfigError, match="no label is called 'buy'; there are: click, like"):
        build_model(LAYOUT, parse_settings({"kind": "din", "label_weights": {"buy": 2.0}}))


def _infinite_features(batch):
    batch.dense[3, 0] = 3e38


def _infinite_weight(batch):
    batch.weights[2] = 3e38


def _nan_label(batch):
    batch.labels[1, 0] = np.nan


def _nan_vector(batch):
    vectors, mask = batch.sequences["history"]
    mask[0, 0], vectors[0, 0, 0] = 1, np.inf


@pytest.mark.parametrize("harm", [_infinite_features, _infinite_weight, _nan_label, _nan_vector])
def test_a_step_that_would_leave_no_numbers_changes_no_bit(net, genesis, harm):
    net.load(genesis)
    minibatch(LAYOUT, 16).step(net)
    before = digest(net.state())
    batch = minibatch(LAYOUT, 16, seed=1)
    batch.dense *= 1e38 if harm is _infinite_features else 1
    harm(batch)
    assert not batch.step(net).finite
    assert digest(net.state()) == before
    assert minibatch(LAYOUT, 16, seed=2).step(net).finite
    assert digest(net.state()) != before


def test_an_optimizer_that_overflows_is_caught_though_every_gradient_is_a_number():
    layout = layout_of({"a": 1})
    net = net_of(layout, f"{__name__}:Squared", DenseAdam())
    batch = minibatch(layout, 16)
    batch.pooled *= 1e12
    batch.labels[:] = 0
    before = digest(net.state())
    # The gradient is about 1e23, a number; its square in Adam's second moment is none.
    result = batch.step(net)
    assert np.isfinite(result.loss) and np.isfinite(result.grad_pooled).all() and not result.finite
    assert digest(net.state()) == before


class Hidden(Squared):
    """Its gradients are NaN in the places that the mask hides, and only there."""

    def apply(self, params, features):
        vectors, mask = features.sequences["history"]
        roots = jnp.sqrt(jnp.where(mask[..., None] > 0, vectors * vectors + 1, 0 * vectors))
        return params["scale"] * jnp.where(mask[..., None] > 0, roots, 0).sum((1, 2))[:, None]


def test_gradients_of_what_a_mask_hides_need_not_be_numbers():
    layout = layout_of({}, sequences={"history": (4, 2, None)})
    net = net_of(layout, f"{__name__}:Hidden")
    batch = minibatch(layout, 16)
    result = batch.step(net)
    hidden = batch.sequences["history"][1] == 0
    assert np.isnan(result.grad_sequences["history"][hidden]).all() and hidden.any()
    assert result.finite


def test_a_step_is_undone_bit_for_bit_and_once(net, genesis):
    net.load(genesis)
    with pytest.raises(RuntimeError, match="no step to undo"):
        net.undo()
    minibatch(LAYOUT, 16).step(net)
    before = digest(net.state())
    minibatch(LAYOUT, 16, seed=1).step(net)
    net.undo()
    assert digest(net.state()) == before
    with pytest.raises(RuntimeError, match="no step to undo"):
        net.undo()
