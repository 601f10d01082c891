"""What a model is: a small class that turns pooled rows, sequences and floats into logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, ValidationError

from streamtrain import plugins
from streamtrain.errors import ConfigError
from streamtrain.layout import Layout, Sequence
from streamtrain.settings import Settings

__all__ = [
    "Column",
    "Features",
    "Inputs",
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
    """

    pooled: dict[str, int]
    sequences: dict[str, Sequence]
    dense: dict[str, int]
    labels: tuple[str, ...]

    @staticmethod
    def of(layout: Layout) -> Inputs:
        return Inputs(
            {columns.name: columns.dim for columns in layout.pooled},
            {sequence.name: sequence for sequence in layout.sequences},
            {columns.name: columns.size for columns in layout.dense},
            layout.labels,
        )

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


class Features(NamedTuple):
    """A minibatch as `Model.apply` sees it, inside jit.

    Attributes:
      pooled: by slot, `[B, dim]` float32, the pooled rows.
      pooled_flat: `[B, W]` float32, all of `pooled` side by side.
      sequences: by slot, each unpooled sequence.
      dense: `[B, F]` float32, the dense slots side by side; F may be 0.
    """

    pooled: dict[str, jax.Array]
    pooled_flat: jax.Array
    sequences: dict[str, SequenceFeatures]
    dense: jax.Array


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
) -> Features:
    """Names the columns of the arrays that cross the bridge.

    Args:
      inputs: which slot has how many columns.
      pooled: `[B, W]` float32.
      sequences: by slot, `[B, T, D]` vectors and `[B, T]` mask.
      dense: `[B, F]` float32.
    """
    # One split, because its gradient is one concatenation; that of slices is a sum of padded arrays, one a slot.
    ends = np.cumsum(list(inputs.pooled.values()))[:-1].tolist()
    parts = jnp.split(pooled, ends, axis=1) if inputs.pooled else []
    return Features(
        dict(zip(inputs.pooled, parts, strict=True)),
        pooled,
        {name: SequenceFeatures(vectors, mask) for name, (vectors, mask) in sequences.items()},
        dense,
    )


def _model_class(kind: str) -> type[Model]:
    found = plugins.load("models", kind)
    if not (isinstance(found, type) and issubclass(found, Model)):
        raise ConfigError(f"model.kind = {kind!r} is not a subclass of streamtrain.dense.model.Model")
    return found
