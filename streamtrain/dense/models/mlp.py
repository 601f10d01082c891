"""Embeddings side by side into fully connected layers: the usual first deep model."""

from __future__ import annotations

from typing import Any

import jax

from streamtrain.dense.model import Column, Features, Inputs, Model, Params
from streamtrain.dense.models.layers import (
    TowerSettings,
    apply_parts,
    dense_columns,
    init_layers,
    pooled_columns,
    pooled_parts,
    product_of,
    require_pooled,
)

__all__ = ["Mlp"]


class Mlp(Model):
    """All pooled vectors and dense floats, concatenated, through the hidden layers to one head a label.

    Source: the benchmark model of XDL (Jiang et al., DLP-KDD 2019): 200, 80, one output.
    """

    Settings = TowerSettings

    def __init__(self, inputs: Inputs, settings: Any) -> None:
        super().__init__(inputs, settings)
        require_pooled(inputs, "mlp")

    def init(self, key: jax.Array) -> Params:
        width = self.inputs.pooled_width + self.inputs.dense_width
        widths = [width, *self.settings.hidden, len(self.inputs.labels)]
        return {"layers": init_layers(key, widths, self.settings.activation)}

    def columns(self) -> dict[str, list[Column]]:
        return {"layers/0/kernel": pooled_columns(self.inputs) + dense_columns(self.inputs)}

    def apply(self, params: Params, features: Features) -> jax.Array:
        product = product_of(self.settings.compute_dtype)
        return apply_parts(params["layers"], features, pooled_parts(self.inputs, features), product)
