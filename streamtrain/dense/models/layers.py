"""Fully connected layers, as a pair of pure functions, and what the built-in models check alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from streamtrain.dense.model import Column, Features, Inputs, ModelSettings
from streamtrain.errors import ConfigError

__all__ = [
    "Activation",
    "ComputeDtype",
    "Layers",
    "Part",
    "Product",
    "TowerSettings",
    "Width",
    "apply_layers",
    "apply_parts",
    "dense_columns",
    "finish_layers",
    "init_layers",
    "pooled_columns",
    "pooled_parts",
    "product_of",
    "require_pooled",
]

Activation = Literal["relu", "prelu"]
ComputeDtype = Literal["float32", "bfloat16"]
Layers = list[dict[str, jax.Array]]
Width = Annotated[int, Field(ge=1, le=16384)]
Product = Callable[[jax.Array, jax.Array], jax.Array]
"""`[..., in]` times `[in, out]`, float32 in and out."""

_SLOPE = 0.25
"""The slope that PReLU starts from (He et al., ICCV 2015)."""


class TowerSettings(ModelSettings):
    """Settings of models with fully connected layers on top."""

    hidden: list[Width] = Field(default=[200, 80], max_length=16)
    """Widths of the hidden layers, first to last. Empty makes the top a single linear layer."""
    activation: Activation = "relu"
    """Of the hidden layers. `prelu` learns the slope of the negative side, one for each unit."""
    compute_dtype: ComputeDtype = "float32"
    """`bfloat16` rounds what the layers multiply, forward and on the way back to their inputs, to 8 bits, for processors that
    have such products (`avx512_bf16`, `amx_bf16`); on others it is slower. Sums, parameters and their gradients stay float32."""


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


def product_of(dtype: ComputeDtype) -> Product:
    """The product that layers with this `compute_dtype` are made of."""
    return jnp.matmul if dtype == "float32" else _short_product


@jax.custom_vjp
def _short_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The product of both rounded to bfloat16, summed in float32.

    The gradient of `x` is such a product as well. That of `kernel` is one of float32: it sums over the minibatch, where
    short factors would cost digits, and with them it was slower than without.
    """
    return _rounded(x, kernel)


def _rounded(x: jax.Array, kernel: jax.Array) -> jax.Array:
    # Where there are no short products XLA makes float32 of both again, and left to itself would not round them first: then
    # a follower on another processor would score otherwise than the trainer.
    short = [jax.lax.reduce_precision(a, 8, 7).astype(jnp.bfloat16) for a in (x, kernel)]
    return jnp.matmul(*short, preferred_element_type=jnp.float32)


def _short_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _rounded(x, kernel), (x, kernel)


def _short_backward(factors: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = factors
    summed = list(range(x.ndim - 1))
    return _rounded(gradient, kernel.T), jnp.tensordot(x, gradient, (summed, summed))


_short_product.defvjp(_short_forward, _short_backward)


def apply_layers(layers: Layers, x: jax.Array, product: Product = jnp.matmul) -> jax.Array:
    """`[..., in]` to `[..., out]`; no activation after the last layer. `product` is one of `product_of`."""
    return finish_layers(layers, product(x, layers[0]["kernel"]), product)


def finish_layers(layers: Layers, sums: jax.Array, product: Product = jnp.matmul) -> jax.Array:
    """As `apply_layers`, from the products of the first layer's kernel on."""
    return _after_first(layers, sums + layers[0]["bias"], product)


def _after_first(layers: Layers, x: jax.Array, product: Product) -> jax.Array:
    """As `apply_layers`, from what the first layer's activation is applied to on."""
    for layer, after in pairwise(layers):
        x = jnp.where(x > 0, x, layer["slope"] * x) if "slope" in layer else jax.nn.relu(x)
        x = product(x, after["kernel"]) + after["bias"]
    return x


class Part(NamedTuple):
    """Some columns of the input of layers.

    Attributes:
      level: whose nodes have them.
      x: `[N_level, columns]`.
      runs: which row of the first kernel meets each run of columns, as (row, columns), in the order of x.
    """

    level: int
    x: jax.Array
    runs: list[tuple[int, int]]


def apply_parts(
    layers: Layers, features: Features, parts: Sequence[Part], product: Product = jnp.matmul
) -> jax.Array:
    """As `apply_layers`, of input whose columns are spread over levels: each is multiplied as often as its level has nodes.

    Args:
      layers: of an input as wide as all parts together.
      features: of which the parts are.
      parts: they meet every row of the first kernel once; of one level, rows ascend from part to part.
      product: one of `product_of`.

    Returns:
      `[B, out]`.
    """
    by_level = [[part for part in parts if part.level == level] for level in range(len(features.levels))]
    runs = [_joined(run for part in own for run in part.runs) for own in by_level]
    starts = sorted(row for own in runs for row, _ in own)
    pieces = dict(zip(starts, jnp.split(layers[0]["kernel"], starts[1:]), strict=True))
    terms = [
        product(_beside([part.x for part in own], 1), _beside([pieces[row] for row, _ in rows], 0))
        if rows
        else None
        for own, rows in zip(by_level, runs, strict=True)
    ]
    # The bias joins the outermost level, so that its gradient is a sum over nodes, not over samples.
    outermost, term = next((level, term) for level, term in enumerate(terms) if term is not None)
    terms[outermost] = term + layers[0]["bias"]
    return _after_first(layers, features.summed(terms), product)


def _joined(runs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Neighbours as one run; none of no columns."""
    found: list[tuple[int, int]] = []
    for row, count in runs:
        if found and sum(found[-1]) == row:
            found[-1] = found[-1][0], found[-1][1] + count
        elif count:
            found.append((row, count))
    return found


def _beside(arrays: Sequence[jax.Array], axis: int) -> jax.Array:
    return arrays[0] if len(arrays) == 1 else jnp.concatenate(arrays, axis)


def pooled_parts(inputs: Inputs, features: Features) -> list[Part]:
    """The pooled vectors and then the floats, where the kernel's rows are in the order of the schema."""
    rows = np.cumsum([0, *inputs.pooled.values()]).tolist()
    runs = dict(zip(inputs.pooled, zip(rows, inputs.pooled.values(), strict=False), strict=True))
    parts = [
        Part(index, level.pooled_flat, [runs[slot] for slot in level.pooled])
        for index, level in enumerate(features.levels)
    ]
    return [*parts, Part(len(features.levels) - 1, features.dense, [(rows[-1], inputs.dense_width)])]


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
