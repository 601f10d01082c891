"""Deep interest network: a behaviour history, weighted by how much each item of it matters for the candidate."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from pydantic import Field

from streamtrain.dense.model import Column, Features, Inputs, Model, Params, SequenceFeatures
from streamtrain.dense.models.layers import (
    Layers,
    Part,
    Product,
    TowerSettings,
    Width,
    apply_parts,
    dense_columns,
    finish_layers,
    init_layers,
    pooled_columns,
    pooled_parts,
    product_of,
)
from streamtrain.errors import ConfigError

__all__ = ["Din", "DinSettings"]

_NEVER = -1e9
"""The score of an empty place before softmax. Finite, so that a history of empty places alone is not 0/0."""


class DinSettings(TowerSettings):
    """Settings of `din`."""

    target: dict[str, str] = Field(default_factory=dict)
    """By sequence slot, the pooled slot that its items are compared with. Default: the slot that it shares with."""
    attention_hidden: list[Width] = Field(default=[36], max_length=8)
    """Widths of the hidden layers that score an item against the target."""
    softmax: bool = False
    """Whether scores are normalised over the history. The paper does not: how much interest there is, is a signal."""


class Din(Model):
    """Mlp over the pooled vectors, the dense floats and, for each sequence, its attended sum.

    Source: Zhou et al., KDD 2018. Without its Dice activation, which depends on the other samples of the minibatch.
    """

    Settings = DinSettings

    def __init__(self, inputs: Inputs, settings: Any) -> None:
        super().__init__(inputs, settings)
        if not inputs.sequences:
            raise ConfigError(
                "model 'din' needs a slot of kind = \"sequence\" with pooling = \"none\"; without one, use 'mlp'"
            )
        if unknown := sorted(set(settings.target) - set(inputs.sequences)):
            raise ConfigError(
                f"model.target: {unknown[0]!r} is not an unpooled sequence slot; there are: {', '.join(inputs.sequences)}"
            )
        self._targets = {slot: self._target(slot) for slot in inputs.sequences}
        self._product = product_of(settings.compute_dtype)

    def init(self, key: jax.Array) -> Params:
        tower, *keys = jax.random.split(key, 1 + len(self._targets))
        activation = self.settings.activation
        dims = {slot: sequence.dim for slot, sequence in self.inputs.sequences.items()}
        width = self.inputs.pooled_width + self.inputs.dense_width + sum(dims.values())
        return {
            "attention": {
                slot: init_layers(k, [4 * dims[slot], *self.settings.attention_hidden, 1], activation)
                for k, slot in zip(keys, self._targets, strict=True)
            },
            "layers": init_layers(tower, [width, *self.settings.hidden, len(self.inputs.labels)], activation),
        }

    def columns(self) -> dict[str, list[Column]]:
        dims = {slot: sequence.dim for slot, sequence in self.inputs.sequences.items()}
        interests: list[Column] = [(slot, d) for slot in self._targets for d in range(dims[slot])]
        scored = ("query", "key", "difference", "product")
        attention: dict[str, list[Column]] = {
            f"attention/{slot}/0/kernel": [(part, d) for part in scored for d in range(dims[slot])]
            for slot in self._targets
        }
        flat = pooled_columns(self.inputs) + dense_columns(self.inputs)
        return {**attention, "layers/0/kernel": flat + interests}

    def apply(self, params: Params, features: Features) -> jax.Array:
        row = self.inputs.pooled_width + self.inputs.dense_width
        parts = pooled_parts(self.inputs, features)
        for slot, target in self._targets.items():
            level, interest = self._interest(params["attention"][slot], features, slot, target)
            parts.append(Part(level, interest, [(row, interest.shape[1])]))
            row += interest.shape[1]
        return apply_parts(params["layers"], features, parts, self._product)

    def _interest(self, layers: Layers, features: Features, slot: str, target: str) -> tuple[int, jax.Array]:
        """The attended sum of a sequence, at the level of it or of its target, whichever is nearer to the samples."""
        holds, asks = self.inputs.level(slot), self.inputs.level(target)
        level = max(holds, asks)
        query = features.spread(features.levels[asks].pooled[target], asks, level)
        spread = partial(features.spread, level=holds, to=level)
        sequence = features.levels[holds].sequences[slot]
        return level, attend(layers, query, sequence, self.settings.softmax, spread, self._product)

    def _target(self, slot: str) -> str:
        sequence = self.inputs.sequences[slot]
        target = self.settings.target.get(slot, sequence.shares)
        if target is None:
            raise ConfigError(
                f"model 'din' must know what to compare schema.slots.{slot} with: let it share the ids of the "
                f"candidate's slot (shares = ...), or set model.target = {{ {slot} = ... }}"
            )
        if target not in self.inputs.pooled:
            raise ConfigError(f"model.target: {slot}'s target {target!r} is not a pooled slot")
        if self.inputs.pooled[target] != sequence.dim:
            raise ConfigError(
                f"model.target: {slot} has dim {sequence.dim}, its target {target} {self.inputs.pooled[target]}; "
                "give their tables the same dim"
            )
        return target


def attend(
    layers: Layers,
    query: jax.Array,
    sequence: SequenceFeatures,
    softmax: bool,
    spread: Callable[[jax.Array], jax.Array],
    product: Product = jnp.matmul,
) -> jax.Array:
    """The sum of a sequence's vectors, each weighted by layers([query, key, query - key, query * key]).

    The first layer is linear, so that it is taken apart: what it makes of the query is computed once a query, what it
    makes of the key once a key, and only what it makes of the product once for each pair of them.

    Args:
      layers: of input width 4 D and output width 1.
      query: `[B, D]`.
      sequence: `[N, T, D]` keys and their mask.
      softmax: whether the weights of a sample's keys are made to sum to 1.
      spread: takes what the N sequences have, `[N, ...]`, to the B queries, `[B, ...]`.
      product: one of `product_of`.

    Returns:
      `[B, D]`; 0 for an empty sequence.
    """
    of_query, of_key, of_difference, of_product = jnp.split(layers[0]["kernel"], 4)
    keys, mask = spread(sequence.vectors), spread(sequence.mask)
    of_pairs = product(query[:, None, :] * keys, of_product)
    of_keys = spread(product(sequence.vectors, of_key - of_difference))
    of_queries = product(query, of_query + of_difference)
    scores = finish_layers(layers, of_pairs + of_keys + of_queries[:, None, :], product)[:, :, 0]
    if softmax:
        scores = jax.nn.softmax(jnp.where(mask > 0, scores, _NEVER), axis=1)
    return jnp.einsum("bt,btd->bd", scores * mask, keys)
