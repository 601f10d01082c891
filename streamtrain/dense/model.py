"""What a model is: a small class that turns pooled rows, sequences and floats into logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, ValidationError

from streamtrain import plugins
from streamtrain.errors import ConfigError
from streamtrain.layout import FLAT, Layout, Sequence, Shared
from streamtrain.samples.schema import LEAF
from streamtrain.settings import Settings

__all__ = [
    "Column",
    "Features",
    "Inputs",
    "LevelFeatures",
    "Model",
    "ModelSettings",
    "Params",
    "SequenceFeatures",
    "build_model",
    "parse_settings",
]

Params = Any
"""A pytree (dicts and lists, usually) whose leaves are float32 arrays."""

Column = tuple[str | int, ...]
"""What one number of a sample is, whatever stands beside it: the slot and the place in it, mostly."""


class ModelSettings(Settings):
    """What every model can be told. A model with options of its own subclasses it."""

    kind: str
    """A built-in's name, or `module:Class`."""
    label_weights: dict[str, Annotated[float, Field(ge=0, le=1e6)]] = Field(default_factory=dict)
    """By label, the weight of its loss in the sum over labels. A label not named here has weight 1."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the schema and the tables promise a model; known before any parameter is made.

    Attributes:
      pooled: by slot, in the schema's order, the dim of its pooled vector.
      sequences: by slot, its length_max, dim, table and the slot that it `shares` ids with, if any.
      dense: by dense slot, in the schema's order, its floats.
      labels: names of the labels; L = len(labels) logits a sample are wanted, in this order.
      levels: for grouped samples, those above the samples that hold anything of these, the root's first.
    """

    pooled: dict[str, int]
    sequences: dict[str, Sequence]
    dense: dict[str, int]
    labels: tuple[str, ...]
    levels: tuple[str, ...] = ()
    _level: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def of(layout: Layout) -> Inputs:
        return Inputs(
            {columns.name: columns.dim for columns in layout.pooled},
            {sequence.name: sequence for sequence in layout.sequences},
            {columns.name: columns.size for columns in layout.dense},
            layout.labels,
            layout.levels,
            {c.name: c.level for c in layout.pooled} | {s.name: s.level for s in layout.sequences},
        )

    def level(self, slot: str) -> int:
        """The place of a pooled slot's or sequence's level in `Features.levels`."""
        return (*self.levels, LEAF).index(self._level.get(slot, LEAF))

    @property
    def dense_width(self) -> int:
        """F, floats a sample."""
        return sum(self.dense.values())

    @property
    def pooled_width(self) -> int:
        """W, the sum of the pooled dims."""
        return sum(self.pooled.values())


class SequenceFeatures(NamedTuple):
    """One unpooled sequence slot.

    Attributes:
      vectors: `[B, T, D]` float32, oldest first; zeros where there is no id.
      mask: `[B, T]` float32, 1 where there is an id and 0 after the last.
    """

    vectors: jax.Array
    mask: jax.Array


class LevelFeatures(NamedTuple):
    """What the N nodes of one level of grouped samples hold; of the level of the samples, what each has for itself.

    Attributes:
      pooled: by slot of the level, `[N, dim]` float32.
      pooled_flat: `[N, W_l]` float32, all of `pooled` side by side.
      sequences: by slot of the level, each unpooled sequence, with N in place of B.
    """

    pooled: dict[str, jax.Array]
    pooled_flat: jax.Array
    sequences: dict[str, SequenceFeatures]


class Features(NamedTuple):
    """A minibatch as `Model.apply` sees it, inside jit.

    A model may look at the first four alone: each sample has all of its features there, grouped or not. One that wants
    to compute once for all samples of a node what they share begins at `levels`; what it does not look at is not computed.

    Attributes:
      pooled: by slot, `[B, dim]` float32, the pooled rows.
      pooled_flat: `[B, W]` float32, all of `pooled` side by side.
      sequences: by slot, each unpooled sequence.
      dense: `[B, F]` float32, the dense slots side by side; F may be 0.
      levels: the same but for `dense`, level by level, the root's first; the last is that of the samples. Samples that are
        not grouped have this one only.
      parents: of each level but the last, `[N_next]` int32, the node that each row of the next level hangs under.
    """

    pooled: dict[str, jax.Array]
    pooled_flat: jax.Array
    sequences: dict[str, SequenceFeatures]
    dense: jax.Array
    levels: tuple[LevelFeatures, ...]
    parents: tuple[jax.Array, ...]

    def spread(self, x: jax.Array, level: int, to: int) -> jax.Array:
        """What nodes of a level have, `[N_level, ...]`, for each node of a level below it, `[N_to, ...]`."""
        for parents in self.parents[level:to]:
            # Rows are whole and parents ascend, so that the gradient's sums cost as little as a copy.
            x = x.at[parents].get(mode="clip", indices_are_sorted=True)
        return x

    def summed(self, terms: SequenceOf[jax.Array | None]) -> jax.Array:
        """The sum, `[B, ...]`, of what each sample and the nodes above it contribute.

        Args:
          terms: by level `[N_l, ...]`, or None where it contributes nothing; at least one is not None.
        """
        total: jax.Array | None = None
        for level, term in enumerate(terms):
            if total is None:
                total = term
                continue
            # One level at a time: two trees' levels meet as close to the root as they can.
            total = self.spread(total, level - 1, level)
            total = total if term is None else total + term
        assert total is not None, "no level contributes anything"
        return total


class Model(ABC):
    """Base of every model. A user's own subclass is named in the job as `module:Class`.

    A model is pure: what `init` and `apply` return depends on their arguments alone, and no sample of a minibatch
    sees another, because minibatches are padded and their size is an accident of timing.

    Class attributes:
      Settings: the settings that `[model]` is read as.
    """

    Settings: ClassVar[type[ModelSettings]] = ModelSettings

    def __init__(self, inputs: Inputs, settings: Any) -> None:
        """Keeps both as attributes. A subclass that cannot use these inputs raises ConfigError here."""
        self.inputs, self.settings = inputs, settings

    @abstractmethod
    def init(self, key: jax.Array) -> Params:
        """Initial parameters, float32, drawn from `key` alone."""

    @abstractmethod
    def apply(self, params: Params, features: Features) -> jax.Array:
        """`[B, L]` float32 logits; the sigmoid of one is the probability of its label."""

    def columns(self) -> Mapping[str, SequenceOf[Column]] | None:
        """What each index of a parameter's first axis stands for, by the parameter's path (`layers/0/kernel`).

        `streamtrain migrate` moves these parameters along with their slots; those not named depend on no slot. None, the
        default, is not to know: then a change of slots or dims begins all dense parameters anew.
        """
        return None

    def loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """`[B, L]` losses of `[B, L]` logits and labels in [0, 1]. Default: sigmoid cross-entropy.

        Metrics and serving read the sigmoid of the logits as a probability, whatever the loss.
        """
        return jax.nn.softplus(logits) - labels * logits


def parse_settings(options: Mapping[str, Any]) -> ModelSettings:
    """The settings of a model from plain data: the `[model]` section, `kind` and the model's own options.

    Raises:
      ConfigError: there is no such model, or an option is unknown, of the wrong type or out of range.
    """
    model = _model_class(str(options.get("kind", "")))
    try:
        return model.Settings.model_validate(dict(options))
    except ValidationError as error:
        faults = (
            f"model.{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors(include_url=False)
        )
        raise ConfigError("\n".join(faults)) from error


def build_model(layout: Layout, settings: ModelSettings) -> Model:
    """The model that the settings name, for these inputs.

    Raises:
      ConfigError: there is no such model, it cannot use these inputs, or a weight is for no label.
    """
    if unknown := sorted(set(settings.label_weights) - set(layout.labels)):
        raise ConfigError(
            f"model.label_weights: no label is called {unknown[0]!r}; there are: {', '.join(layout.labels)}"
        )
    return _model_class(settings.kind)(Inputs.of(layout), settings)


def features_of(
    inputs: Inputs,
    pooled: jax.Array,
    sequences: Mapping[str, tuple[jax.Array, jax.Array]],
    dense: jax.Array,
    shared: Shared = FLAT,
) -> Features:
    """Names the columns of the arrays that cross the bridge.

    Args:
      inputs: which slot has how many columns.
      pooled: `[B, W_leaf]` float32.
      sequences: by slot, `[N_l, T, D]` vectors and `[N_l, T]` mask.
      dense: `[B, F]` float32.
      shared: of the levels above the samples.
    """
    arrays = (*shared.pooled, pooled)
    levels = tuple(_level_features(inputs, level, array, sequences) for level, array in enumerate(arrays))
    own = levels[-1]
    whole = Features(own.pooled, own.pooled_flat, own.sequences, dense, levels, shared.parents)
    return whole if len(levels) == 1 else _expanded(inputs, whole)


def _level_features(
    inputs: Inputs, level: int, pooled: jax.Array, sequences: Mapping[str, tuple[jax.Array, jax.Array]]
) -> LevelFeatures:
    dims = {slot: dim for slot, dim in inputs.pooled.items() if inputs.level(slot) == level}
    # One split, because its gradient is one concatenation; that of slices is a sum of padded arrays, one a slot.
    parts = jnp.split(pooled, np.cumsum(list(dims.values()))[:-1].tolist(), axis=1) if dims else []
    return LevelFeatures(
        dict(zip(dims, parts, strict=True)),
        pooled,
        {name: SequenceFeatures(*pair) for name, pair in sequences.items() if inputs.level(name) == level},
    )


def _expanded(inputs: Inputs, features: Features) -> Features:
    """The same with everything that nodes hold given to each of their samples."""
    pooled: dict[str, jax.Array] = {}
    sequences: dict[str, SequenceFeatures] = {}
    last = len(features.levels) - 1
    for index, level in enumerate(features.levels):
        if level.pooled:
            spread = features.spread(level.pooled_flat, index, last)
            ends = np.cumsum([part.shape[1] for part in level.pooled.values()])[:-1].tolist()
            pooled |= zip(level.pooled, jnp.split(spread, ends, axis=1), strict=True)
        for name, sequence in level.sequences.items():
            sequences[name] = SequenceFeatures(*(features.spread(x, index, last) for x in sequence))
    pooled = {slot: pooled[slot] for slot in inputs.pooled}
    flat = jnp.concatenate([*pooled.values()], axis=1) if pooled else features.pooled_flat
    return features._replace(
        pooled=pooled, pooled_flat=flat, sequences={slot: sequences[slot] for slot in inputs.sequences}
    )


def _model_class(kind: str) -> type[Model]:
    found = plugins.load("models", kind)
    if not (isinstance(found, type) and issubclass(found, Model)):
        raise ConfigError(f"model.kind = {kind!r} is not a subclass of streamtrain.dense.model.Model")
    return found
