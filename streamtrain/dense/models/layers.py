"""Fully connected layers, as a pair of pure functions, and what the built-in models check alike."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from pydantic import Field

from streamtrain.dense.model import Column, Inputs, ModelSettings
from streamtrain.errors import ConfigError

__all__ = [
    "Activation",
    "Layers",
    "TowerSettings",
    "Width",
    "apply_layers",
    "dense_columns",
    "init_layers",
    "pooled_columns",
    "require_pooled",
]

Activation = Literal["relu", "prelu"]
Layers = list[dict[str, jax.Array]]
Width = Annotated[int, Field(ge=1, le=16384)]

_SLOPE = 0.25
"""The slope that PReLU starts from (He et al., ICCV 2015)."""


class TowerSettings(ModelSettings):
    """Settings of models with fully connected layers on top."""

    hidden: list[Width] = Field(default=[200, 80], max_length=16)
    """Widths of the hidden layers, first to last. Empty makes the top a single linear layer."""
    activation: Activation = "relu"
    """Of the hidden layers. `prelu` learns the slope of the negative side, one for each unit."""


def init_layers(key: jax.Array, widths: Sequence[int], activation: Activation) -> Layers:
    """Parameters of len(widths) - 1 layers.

    Hidden kernels are normal with variance 2 / fan-in (He et al., ICCV 2015), the last is uniform with variance
    2 / (fan-in + fan-out) (Glorot and Bengio, AISTATS 2010), biases are 0.

    Args:
      key: consumed.
      widths: of the input, the hidden layers and the output.
      activation: of the hidden layers.

    Returns:
      A list of {kernel `[in, out]`, bias `[out]`, and for prelu slope `[out]`}, all float32.
    """
    he, glorot = jax.nn.initializers.he_normal(), jax.nn.initializers.glorot_uniform()
    keys = jax.random.split(key, len(widths) - 1)
    last = len(widths) - 2
    layers: Layers = []
    for index, (fan_in, fan_out) in enumerate(pairwise(widths)):
        initializer = glorot if index == last else he
        layer = {
            "kernel": initializer(keys[index], (fan_in, fan_out), jnp.float32),
            "bias": jnp.zeros(fan_out),
        }
        if activation == "prelu" and index != last:
            layer["slope"] = jnp.full(fan_out, _SLOPE)
        layers.append(layer)
    return layers


def apply_layers(layers: Layers, x: jax.Array) -> jax.Array:
    """`[..., in]` to `[..., out]`; no activation after the last layer."""
    for layer in layers[:-1]:
        x = x @ layer["kernel"] + layer["bias"]
        x = jnp.where(x > 0, x, layer["slope"] * x) if "slope" in layer else jax.nn.relu(x)
    return x @ layers[-1]["kernel"] + layers[-1]["bias"]


def pooled_columns(inputs: Inputs, first: int = 0) -> list[Column]:
    """What the pooled vectors side by side consist of, each without its first `first` weights."""
    return [(slot, d) for slot, dim in inputs.pooled.items() for d in range(first, dim)]


def dense_columns(inputs: Inputs) -> list[Column]:
    """What the dense floats side by side consist of."""
    return [(slot, i) for slot, size in inputs.dense.items() for i in range(size)]


def require_pooled(inputs: Inputs, model: str) -> None:
    """Refuses sequence slots that reach the model unpooled, and a schema of labels alone.

    Raises:
      ConfigError: naming the slots.
    """
    if inputs.sequences:
        names = ", ".join(inputs.sequences)
        raise ConfigError(
            f"model {model!r} cannot use unpooled sequences (schema.slots: {names}): "
            'set pooling = "mean" or "sum" on them, or use model kind = "din"'
        )
    if inputs.pooled_width + inputs.dense_width == 0:
        raise ConfigError(f"model {model!r} has nothing to learn from: add a slot to schema.slots")
