import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from streamtrain.dense.optimizers import AnyDenseOptimizer, DenseAdam
from tests.unit.dense.toy import layout_of, minibatch, net_of

ADAPTER = TypeAdapter(AnyDenseOptimizer)
SETTINGS = [
    {"kind": "sgd"},
    {"kind": "momentum", "nesterov": True},
    {"kind": "adagrad"},
    {"kind": "adam", "beta1": 0.8},
    {"kind": "adamw", "weight_decay": 0.01},
    {"kind": "adam", "clip_norm": 1.0},
]


@pytest.mark.parametrize("options", SETTINGS, ids=lambda o: ",".join(map(str, o.values())))
def test_every_kind_lowers_the_loss_and_goes_on_from_its_state_with_the_same_bits(options):
    layout = layout_of({"a": 4}, dense=2)
    batch = minibatch(layout, 16)
    net = net_of(layout, "mlp", ADAPTER.validate_python({**options, "learning_rate": 0.05}), hidden=[8])
    first = batch.step(net).loss
    for _ in range(20):
        batch.step(net)
    middle = net.state()
    runs = []
    for _ in range(2):
        net.load(middle)
        runs.append([batch.step(net) for _ in range(3)][-1])
        runs.append(net.state())
    assert runs[0].loss < first
    assert runs[0].logits.tobytes() == runs[2].logits.tobytes()
    assert all(np.array_equal(array, runs[3][name]) for name, array in runs[1].items())


def test_clip_norm_bounds_the_step():
    layout = layout_of({"a": 4})
    batch = minibatch(layout, 16)
    net = net_of(
        layout, "mlp", ADAPTER.validate_python({"kind": "sgd", "learning_rate": 1.0, "clip_norm": 0.01})
    )
    before = net.state()
    batch.step(net)
    squares = sum(float(np.square(after - before[name]).sum()) for name, after in net.state().items())
    assert np.sqrt(squares) == pytest.approx(0.01, rel=1e-3)


def test_default_is_adam():
    assert DenseAdam() == ADAPTER.validate_python({"kind": "adam", "learning_rate": 0.001})


@pytest.mark.parametrize(
    "bad", [{"kind": "adam", "learning_rate": 0}, {"kind": "sgd", "momentum": 0.9}, {"kind": "lion"}]
)
def test_wrong_settings_are_refused(bad):
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(bad)
