"""Scores minibatches with given parameters: what serving needs of the dense half."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from streamtrain.dense.buckets import Buckets, Program, Shape
from streamtrain.dense.model import ModelSettings, Params, build_model, features_of
from streamtrain.dense.state import placed
from streamtrain.dense.threads import use_threads
from streamtrain.errors import ConfigError
from streamtrain.layout import FLAT, Layout, Shared
from streamtrain.plugins import blamed
from streamtrain.samples.schema import LEAF

__all__ = ["DensePredictor", "shape_of"]

_PREFIX = "params/"


class DensePredictor:
    """The forward half of a model. Holds no parameters, so versions of them come and go without a compilation.

    Any number of threads may call it at once, after `warm_up`.
    """

    def __init__(
        self, layout: Layout, model: ModelSettings, *, batch_size: int, buckets: Sequence[int] | None = None
    ) -> None:
        """Builds the model; compiles nothing.

        Args:
          layout: which slot is which columns.
          model: names the model, and its options.
          batch_size: the largest minibatch.
          buckets: see `Buckets`.

        Raises:
          ConfigError: there is no such model, or it cannot use these inputs.
        """
        use_threads()
        self._name = f"model {model.kind!r}"
        with blamed(ConfigError, f"{self._name}: making it"):
            self.model = build_model(layout, model)
        self.buckets = Buckets(batch_size, buckets, len(layout.levels))
        self._layout = layout
        with blamed(ConfigError, f"{self._name}: init"):
            self.params_shapes = _params_shapes(self.model.init)
        self._program = Program("predict", self.apply, self._arguments)

    @property
    def compilations(self) -> int:
        """Compilations that a call had to wait for; more than 0 after `warm_up` is a bug."""
        return self._program.late

    def warm_up(self) -> None:
        """Compiles every shape."""
        for shape in self.buckets.shapes:
            self._program.compile(shape)

    def bucket(self, size: int) -> int:
        """The number of rows to pad a minibatch of `size` samples to."""
        return self.buckets.of(size)

    def nodes(self, bucket: int, counts: Sequence[int]) -> Shape:
        """The rows to pad levels of `counts` nodes to, the root's first; `bucket` is that of their samples."""
        return self.buckets.nodes_of(bucket, counts)

    def params(self, arrays: Mapping[str, NDArray[Any]]) -> Params:
        """Parameters on the device, to pass to `predict`.

        Args:
          arrays: `DenseNet.state()`, or those of its arrays whose names begin with `params/`; not aliased.

        Raises:
          ConfigError: they are not this model's.
        """
        weights = {name: array for name, array in arrays.items() if name.startswith(_PREFIX)}
        return placed({"params": self.params_shapes}, weights)["params"]

    def predict(
        self,
        params: Params,
        pooled: NDArray[np.float32],
        sequences: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]],
        dense: NDArray[np.float32],
        shared: Shared = FLAT,
    ) -> NDArray[np.float32]:
        """Scores a padded minibatch.

        Args:
          params: from `params`.
          pooled: `[P, W_leaf]` float32, contiguous, P a bucket; copied unless aligned to 64 bytes.
          sequences: by slot, `[P_l, T, D]` and `[P_l, T]` float32.
          dense: `[P, F]` float32.
          shared: of the layout's levels above the samples.

        Returns:
          `[P, L]` float32 logits, read-only.
        """
        shape = shape_of(pooled, shared)
        return np.asarray(self._program.run(shape, params, pooled, dict(sequences), dense, shared))

    def apply(
        self,
        params: Params,
        pooled: jax.Array,
        sequences: Mapping[str, tuple[jax.Array, jax.Array]],
        dense: jax.Array,
        shared: Shared,
    ) -> jax.Array:
        """The model's logits, checked while traced. Pure.

        Raises:
          ConfigError: the model returns another shape than `[P, L]`, or another dtype than float32.
        """
        with blamed(ConfigError, f"{self._name}: apply"):
            logits = self.model.apply(
                params, features_of(self.model.inputs, pooled, sequences, dense, shared)
            )
        self._check_shape("apply", "logits", logits, len(pooled))
        return logits

    def loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """The model's losses, checked while traced. Pure.

        Raises:
          ConfigError: as `apply`; a shape that merely broadcasts would add up the losses of other samples.
        """
        with blamed(ConfigError, f"{self._name}: loss"):
            losses = self.model.loss(logits, labels)
        self._check_shape("loss", "losses", losses, len(logits))
        return losses

    def _check_shape(self, method: str, what: str, found: Any, samples: int) -> None:
        wanted = (samples, len(self._layout.labels))
        if not isinstance(found, jax.Array):
            returned = type(found).__name__
        elif found.shape != wanted or found.dtype != jnp.float32:
            returned = f"{found.dtype.name}{list(found.shape)}"
        else:
            return
        raise ConfigError(
            f"{self._name}: {type(self.model).__name__}.{method} must return float32 {what} of shape [samples, labels] = "
            f"{list(wanted)}; it returned {returned}"
        )

    def minibatch_shapes(self, shape: Shape) -> tuple[Any, Any, Any, Any]:
        """Shapes of pooled, sequences, dense and shared, padded to `shape`."""
        layout, floats = self._layout, jnp.float32
        rows = dict(zip((*layout.levels, LEAF), shape, strict=True))
        return (
            jax.ShapeDtypeStruct((rows[LEAF], layout.width(LEAF)), floats),
            {
                s.name: (
                    jax.ShapeDtypeStruct((rows[s.level], s.length_max, s.dim), floats),
                    jax.ShapeDtypeStruct((rows[s.level], s.length_max), floats),
                )
                for s in layout.sequences
            },
            jax.ShapeDtypeStruct((rows[LEAF], layout.dense_width), floats),
            Shared(
                tuple(
                    jax.ShapeDtypeStruct((rows[name], layout.width(name)), floats) for name in layout.levels
                ),
                tuple(jax.ShapeDtypeStruct((below,), jnp.int32) for below in shape[1:]),
            ),
        )

    def _arguments(self, shape: Shape) -> tuple[Any, ...]:
        return (self.params_shapes, *self.minibatch_shapes(shape))


def shape_of(pooled: NDArray[np.float32], shared: Shared) -> Shape:
    """The padded shape of a minibatch."""
    return (*(len(array) for array in shared.pooled), len(pooled))


def _params_shapes(init: Any) -> Any:
    shapes = jax.eval_shape(init, jax.random.key(0))
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        if leaf.dtype != jnp.float32:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ConfigError(
                f"the model's parameter {name} is {leaf.dtype.name}; parameters must be float32"
            )
    # Without `weak_type`, which a Python number as a parameter would bring in: arrays that come back never have it.
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), shapes)
