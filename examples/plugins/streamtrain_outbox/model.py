"""DCN-v2: the model plug-in `crossnet`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from pydantic import Field

from streamtrain.dense.model import Features, Model, ModelSettings, Params
from streamtrain.dense.models.layers import apply_layers, init_layers

__all__ = ["CrossNet", "CrossNetSettings"]


class CrossNetSettings(ModelSettings):
    """Layers that multiply the input by a learned mix of itself (Wang et al., "DCN V2", WWW 2021)."""

    kind: str = "crossnet"
    """This model."""
    depth: int = Field(default=2, ge=1, le=8)
    """How many such layers: an input is crossed with itself up to `depth` + 1 times."""


class CrossNet(Model):
    """`x <- x + x0 * (W x + b)`, `depth` times, then a small top."""

    Settings = CrossNetSettings

    def init(self, key: jax.Array) -> Params:
        width = self.inputs.pooled_width + self.inputs.dense_width
        top, *keys = jax.random.split(key, 1 + self.settings.depth)
        crosses = [init_layers(k, [width, width], "relu") for k in keys]
        return {"cross": crosses, "top": init_layers(top, [width, 64, len(self.inputs.labels)], "relu")}

    def apply(self, params: Params, features: Features) -> jax.Array:
        x = start = jnp.concatenate([features.pooled_flat, features.dense], axis=1)
        for layers in params["cross"]:
            x = x + start * apply_layers(layers, x)
        return apply_layers(params["top"], x)
