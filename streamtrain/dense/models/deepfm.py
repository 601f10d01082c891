"""DeepFM: a factorisation machine and a deep network over the same embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from streamtrain.dense.model import Column, Features, Inputs, LevelFeatures, Model, Params
from streamtrain.dense.models.layers import (
    Part,
    TowerSettings,
    apply_parts,
    dense_columns,
    init_layers,
    pooled_columns,
    product_of,
    require_pooled,
)
from streamtrain.errors import ConfigError

__all__ = ["DeepFM"]


class DeepFM(Model):
    """logit_l = sum of linear weights + sum over pairs of slots of <v_i, v_j> + layers(v, dense)_l.

    A row is [linear weights, one a label | factors]. A slot whose table has no factors (dim = number of labels) is
    wide: it contributes its linear weights alone, which is cheap for large crosses. With several labels the pair
    term is shared, and each label learns how much of it to take.

    Source: Guo et al., IJCAI 2017.
    """

    Settings = TowerSettings

    def __init__(self, inputs: Inputs, settings: Any) -> None:
        super().__init__(inputs, settings)
        require_pooled(inputs, "deepfm")
        self._labels = len(inputs.labels)
        self._deep = {slot: dim for slot, dim in inputs.pooled.items() if dim > self._labels}
        narrow = [slot for slot, dim in inputs.pooled.items() if dim < self._labels]
        if narrow or not self._deep:
            raise ConfigError(
                f"model 'deepfm' needs rows of {self._labels} linear weights (one a label) and some factors: "
                f"set dim above {self._labels} on the table of {', '.join(narrow or inputs.pooled) or 'a sparse slot'}"
            )
        if len(set(self._deep.values())) > 1:
            dims = ", ".join(f"{slot} has {dim}" for slot, dim in self._deep.items())
            raise ConfigError(
                f"model 'deepfm' pairs factors of one length, but {dims}: give their tables the same dim"
            )

    def init(self, key: jax.Array) -> Params:
        width = sum(dim - self._labels for dim in self._deep.values()) + self.inputs.dense_width
        widths = [width, *self.settings.hidden, self._labels]
        params: dict[str, Any] = {"layers": init_layers(key, widths, self.settings.activation)}
        if self._labels > 1:
            params["pair_scale"] = jnp.ones(self._labels)
        return params

    def columns(self) -> dict[str, list[Column]]:
        return {"layers/0/kernel": pooled_columns(self.inputs, self._labels) + dense_columns(self.inputs)}

    def apply(self, params: Params, features: Features) -> jax.Array:
        linear, factors = zip(*map(self._split, features.levels), strict=True)
        pairs = pair_sum(features, factors)[:, None] * params.get("pair_scale", 1.0)
        product = product_of(self.settings.compute_dtype)
        deep = apply_parts(params["layers"], features, self._parts(features, factors), product)
        return features.summed(linear) + pairs + deep

    def _split(self, level: LevelFeatures) -> tuple[jax.Array, jax.Array]:
        """`[N, L]` summed linear weights and `[N, n, K]` factors of the level's n deep slots.

        Neighbours of one dim are cut out together: one slice a slot would take XLA seconds to compile.
        """
        runs = [
            (dim, len(list(slots))) for dim, slots in groupby(self.inputs.pooled[s] for s in level.pooled)
        ]
        ends = np.cumsum([dim * count for dim, count in runs])[:-1].tolist()
        nodes = len(level.pooled_flat)
        linear = jnp.zeros((nodes, self._labels))
        factors = []
        for (dim, count), part in zip(runs, jnp.split(level.pooled_flat, ends, axis=1), strict=bool(runs)):
            rows = part.reshape(-1, count, dim)
            linear += rows[:, :, : self._labels].sum(axis=1)
            if dim > self._labels:
                factors.append(rows[:, :, self._labels :])
        none = jnp.zeros((nodes, 0, next(iter(self._deep.values())) - self._labels))
        return linear, jnp.concatenate(factors, axis=1) if factors else none

    def _parts(self, features: Features, factors: Sequence[jax.Array]) -> list[Part]:
        """The factors of all deep slots and then the floats, where the kernel's rows are in the order of the schema."""
        rows = np.cumsum([0, *(dim - self._labels for dim in self._deep.values())]).tolist()
        begins = dict(zip(self._deep, rows, strict=False))
        parts = [
            Part(
                index,
                own.reshape(len(own), -1),
                [
                    (begins[slot], self._deep[slot] - self._labels)
                    for slot in level.pooled
                    if slot in self._deep
                ],
            )
            for index, (level, own) in enumerate(zip(features.levels, factors, strict=True))
        ]
        return [*parts, Part(len(parts) - 1, features.dense, [(rows[-1], self.inputs.dense_width)])]


def pair_sum(features: Features, factors: Sequence[jax.Array]) -> jax.Array:
    """Sum over pairs i < j of <v_i, v_j>, in linear time: half of |sum of v|^2 - sum of |v|^2.

    Args:
      features: of the minibatch.
      factors: by level `[N_l, n_l, K]`; a sample has those of its own and of the nodes above it.

    Returns:
      `[B]`.

    Source: Rendle, ICDM 2010, lemma 3.1.
    """
    sums = features.summed([own.sum(axis=1) for own in factors])
    squares = features.summed([jnp.square(own).sum(axis=1) for own in factors])
    return 0.5 * (jnp.square(sums) - squares).sum(axis=1)
