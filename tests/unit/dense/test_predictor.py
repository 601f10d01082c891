from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from streamtrain.dense.model import parse_settings
from streamtrain.dense.predictor import DensePredictor
from streamtrain.errors import ConfigError
from tests.unit.dense.toy import layout_of, minibatch, net_of

LAYOUT = layout_of({"a": 5, "b": 5}, dense=2, labels=("click", "like"))
OPTIONS = {"hidden": [8]}


@pytest.fixture(scope="module")
def predictor():
    predictor = DensePredictor(LAYOUT, parse_settings({"kind": "deepfm", **OPTIONS}), batch_size=64)
    predictor.warm_up()
    return predictor


def test_scores_equal_the_trainers_at_the_same_state_whatever_the_padding(predictor):
    net = net_of(LAYOUT, "deepfm", **OPTIONS)
    for seed in range(4):
        minibatch(LAYOUT, 16, seed=seed).step(net)
    state = net.state()
    weights = {name: array for name, array in state.items() if name.startswith("params/")}
    batch = minibatch(LAYOUT, 16, seed=9)
    logits = batch.step(net).logits
    for arrays in (state, weights):
        scores = predictor.predict(predictor.params(arrays), *batch.features)
        assert scores == pytest.approx(logits, abs=1e-6)
    padded = minibatch(LAYOUT, 16, 64, seed=9)
    padded.pooled[:16], padded.dense[:16] = batch.pooled, batch.dense
    assert predictor.predict(predictor.params(weights), *padded.features)[:16] == pytest.approx(
        logits, abs=1e-6
    )


def test_versions_change_under_concurrent_readers_without_compilation(predictor):
    batch = minibatch(LAYOUT, 16)
    states = [net_of(LAYOUT, "deepfm", net_seed=seed, **OPTIONS).state() for seed in range(3)]
    alone = [predictor.predict(predictor.params(state), *batch.features).tobytes() for state in states]

    def read(turn):
        return (
            predictor.predict(predictor.params(states[turn % 3]), *batch.features).tobytes()
            == alone[turn % 3]
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(200)))
    assert predictor.compilations == 0


def test_parameters_are_copied(predictor):
    state = net_of(LAYOUT, "deepfm", **OPTIONS).state()
    params = predictor.params(state)
    batch = minibatch(LAYOUT, 16)
    before = predictor.predict(params, *batch.features).copy()
    for array in state.values():
        array[...] = 0
    assert np.array_equal(predictor.predict(params, *batch.features), before)


def test_parameters_of_another_model_are_refused(predictor):
    state = net_of(LAYOUT, "deepfm", hidden=[9]).state()
    with pytest.raises(
        ConfigError, match=r"params/layers/0/bias is float32\[9\], the model's is float32\[8\]"
    ):
        predictor.params(state)
