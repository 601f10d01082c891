"""Logistic regression: the sum of one weight an id."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from streamtrain.dense.model import Column, Features, Inputs, Model, Params
from streamtrain.dense.models.layers import dense_columns, require_pooled
from streamtrain.errors import ConfigError

__all__ = ["Linear"]


class Linear(Model):
    """logit_l = sum over slots of pooled[slot][l] + dense @ kernel[:, l] + bias[l].

    Tables have as many weights a row as there are labels: 1 for one label.
    """

    def __init__(self, inputs: Inputs, settings: Any) -> None:
        super().__init__(inputs, settings)
        require_pooled(inputs, "linear")
        labels = len(inputs.labels)
        if wrong := [slot for slot, dim in inputs.pooled.items() if dim != labels]:
            raise ConfigError(
                f"model 'linear' needs one weight a row for each label: set dim = {labels} "
                f"on the table of {', '.join(wrong)}"
            )

    def init(self, key: jax.Array) -> Params:
        labels = len(self.inputs.labels)
        return {"kernel": jnp.zeros((self.inputs.dense_width, labels)), "bias": jnp.zeros(labels)}

    def columns(self) -> dict[str, list[Column]]:
        return {"kernel": dense_columns(self.inputs)}

    def apply(self, params: Params, features: Features) -> jax.Array:
        slots = [
            level.pooled_flat.reshape(-1, len(level.pooled), len(self.inputs.labels)).sum(axis=1)
            if level.pooled
            else jnp.zeros((len(level.pooled_flat), len(self.inputs.labels)))
            for level in features.levels
        ]
        return features.summed(slots) + features.dense @ params["kernel"] + params["bias"]
