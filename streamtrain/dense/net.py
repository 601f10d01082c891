"""Trains the dense half: one jitted step over pooled rows and sequences, and the gradients of both back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from streamtrain.dense.buckets import Program, Shape
from streamtrain.dense.model import ModelSettings
from streamtrain.dense.optimizers import AnyDenseOptimizer, DenseAdam, transformation
from streamtrain.dense.predictor import DensePredictor, shape_of
from streamtrain.dense.state import named_arrays, placed
from streamtrain.layout import FLAT, Layout, Shared

__all__ = ["DenseNet", "StepResult"]

_TINY = 1e-12
"""Keeps the mean over a minibatch of no weight at 0 rather than 0/0."""


class StepResult(NamedTuple):
    """What one step returns. Arrays are read-only and belong to the caller for good; P, P_l are padded sizes.

    Attributes:
      logits: `[P, L]` float32, from before the step: what prequential evaluation scores. Padding rows mean nothing.
      loss: sum over samples and labels of weight * label weight * loss, from before the step.
      grad_pooled: `[P, W_leaf]` float32, gradient of that sum; 0 in padding rows.
      grad_sequences: by slot, `[P_l, T, D]` float32, likewise.
      grad_shared: of each of the layout's levels, `[P_l, W_l]` float32, likewise.
      finite: whether the loss, and the parameters and optimizer state that the step leads to, are numbers. Where not,
        nothing was learned, and the other values mean nothing. Gradients of rows are for the rows' optimizer to check.
    """

    logits: NDArray[np.float32]
    loss: float
    grad_pooled: NDArray[np.float32]
    grad_sequences: dict[str, NDArray[np.float32]]
    grad_shared: tuple[NDArray[np.float32], ...]
    finite: bool


class DenseNet:
    """The dense parameters, their optimizer, and the step that mutates both. One thread uses it.

    Two nets with the same settings, seed and minibatches (size of padding included) hold the same bits, on machines
    whose CPU has the same vector instructions.
    """

    def __init__(
        self,
        layout: Layout,
        model: ModelSettings,
        optimizer: AnyDenseOptimizer | None = None,
        *,
        seed: int = 0,
        batch_size: int,
        buckets: Sequence[int] | None = None,
    ) -> None:
        """Makes initial parameters; compiles no step.

        Args:
          layout: which slot is which columns.
          model: names the model, and its options.
          optimizer: of the dense parameters. Default: Adam.
          seed: decides the initial parameters.
          batch_size: the largest minibatch.
          buckets: padded sizes; see `Buckets`.

        Raises:
          ConfigError: there is no such model, or it cannot use these inputs.
        """
        self._predictor = DensePredictor(layout, model, batch_size=batch_size, buckets=buckets)
        self._labels = layout.labels
        self._label_weights = np.array(
            [model.label_weights.get(name, 1.0) for name in layout.labels], np.float32
        )
        self._optimizer = transformation(optimizer or DenseAdam())
        shapes = self._predictor.params_shapes
        self._shapes = {"params": shapes, "optimizer": jax.eval_shape(self._optimizer.init, shapes)}
        self._program = Program("step", self._step, self._arguments)
        # Made when first asked for: a net that is loaded never is, and to draw what it starts with takes a third of a second.
        self._seed = seed
        self._current: Any = None
        # The state from before the last step, so that it can be undone; the price is memory for a second one.
        self._before: Any = None

    @property
    def _state(self) -> Any:
        if self._current is None:
            self._current = self._initial(self._seed)
        return self._current

    @_state.setter
    def _state(self, state: Any) -> None:
        self._current = state

    @property
    def compilations(self) -> int:
        """Compilations that a step or prediction had to wait for; more than 0 after `warm_up` is a bug."""
        return self._program.late + self._predictor.compilations

    def warm_up(self) -> None:
        """Compiles step and prediction for every shape, so that nothing compiles while samples wait."""
        for shape in self._predictor.buckets.shapes:
            self._program.compile(shape)
        self._predictor.warm_up()

    def bucket(self, size: int) -> int:
        """The number of rows to pad a minibatch of `size` samples to.

        Raises:
          ValueError: more samples than the batch size.
        """
        return self._predictor.bucket(size)

    def nodes(self, bucket: int, counts: Sequence[int]) -> Shape:
        """The rows to pad levels of `counts` nodes to, the root's first; `bucket` is that of their samples."""
        return self._predictor.nodes(bucket, counts)

    def step(
        self,
        pooled: NDArray[np.float32],
        sequences: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]],
        dense: NDArray[np.float32],
        labels: NDArray[np.float32],
        weights: NDArray[np.float32],
        shared: Shared = FLAT,
    ) -> StepResult:
        """Scores a padded minibatch, then learns from it, unless that would leave numbers behind that are none.

        Rows get the gradient of the weighted sum of losses, because each id's gradients are summed and its optimizer
        has seen it as often as it occurred; dense parameters get that of the weighted mean, so that their step does
        not depend on how full the minibatch is.

        Args:
          pooled: `[P, W_leaf]` float32, contiguous, P a bucket; copied unless aligned to 64 bytes.
          sequences: by slot, `[P_l, T, D]` vectors and `[P_l, T]` mask, float32.
          dense: `[P, F]` float32.
          labels: `[P, L]` float32 in [0, 1].
          weights: `[P]` float32, >= 0, and 0 in padding rows.
          shared: of the layout's levels above the samples; rows of `nodes`.

        Returns:
          The result; no input is read after that.
        """
        arguments = (pooled, dict(sequences), dense, shared, labels, weights)
        state, outputs = self._program.run(shape_of(pooled, shared), self._state, *arguments)
        # Inputs may have crossed without a copy: the caller may overwrite them once everything has been computed.
        jax.block_until_ready((state, outputs))
        logits, loss, grad_pooled, grad_sequences, grad_shared, finite = outputs
        self._before = self._state
        if finite:
            self._state = state
        return StepResult(
            np.asarray(logits),
            float(loss),
            np.asarray(grad_pooled),
            {name: np.asarray(gradient) for name, gradient in grad_sequences.items()},
            tuple(np.asarray(gradient) for gradient in grad_shared),
            bool(finite),
        )

    def undo(self) -> None:
        """Becomes the net that it was before the last step, bit for bit: the sparse half could not follow that step.

        Raises:
          RuntimeError: no step was taken since the net was made, loaded or undone.
        """
        if self._before is None:
            raise RuntimeError("there is no step to undo")
        self._state, self._before = self._before, None

    def predict(
        self,
        pooled: NDArray[np.float32],
        sequences: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]],
        dense: NDArray[np.float32],
        shared: Shared = FLAT,
    ) -> NDArray[np.float32]:
        """Scores a padded minibatch and learns nothing. Arguments as for `step`.

        Returns:
          `[P, L]` float32 logits, read-only.
        """
        return self._predictor.predict(self._state["params"], pooled, sequences, dense, shared)

    def state(self) -> dict[str, NDArray[Any]]:
        """Copies of everything that `load` needs to go on with the same bits.

        Returns:
          By name, float32 parameters (`params/layers/0/kernel`) and float32 or int32 optimizer state
          (`optimizer/0/count`). Those under `params/` are all that prediction needs.
        """
        return named_arrays(self._state)

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Becomes the net that `state` returned these arrays of; they are copied.

        Raises:
          ConfigError: a name, shape or dtype is not this model's; the net is unchanged.
        """
        self._state, self._before = placed(self._shapes, arrays), None

    def _initial(self, seed: int) -> Any:
        def initial(key: jax.Array) -> Any:
            params = self._predictor.model.init(key)
            return {"params": params, "optimizer": self._optimizer.init(params)}

        # It runs once: optimising it would take longer than it runs.
        once = jax.jit(initial, compiler_options={"xla_backend_optimization_level": 0})
        return placed(self._shapes, named_arrays(once(jax.random.key(seed))))

    def _step(
        self,
        state: Any,
        pooled: jax.Array,
        sequences: dict[str, tuple[jax.Array, jax.Array]],
        dense: jax.Array,
        shared: Shared,
        labels: jax.Array,
        weights: jax.Array,
    ) -> tuple[Any, tuple[Any, ...]]:
        vectors = {name: pair[0] for name, pair in sequences.items()}

        def total_loss(
            params: Any, pooled: jax.Array, vectors: dict[str, jax.Array], nodes: tuple[jax.Array, ...]
        ) -> tuple[jax.Array, jax.Array]:
            masked = {name: (vectors[name], mask) for name, (_, mask) in sequences.items()}
            logits = self._predictor.apply(params, pooled, masked, dense, Shared(nodes, shared.parents))
            losses = self._predictor.loss(logits, labels)
            return jnp.sum(losses * self._label_weights * weights[:, None]), logits

        (loss, logits), (grad_params, *gradients) = jax.value_and_grad(
            total_loss, argnums=(0, 1, 2, 3), has_aux=True
        )(state["params"], pooled, vectors, shared.pooled)
        scale = 1 / jnp.maximum(jnp.sum(weights), _TINY)
        grad_params = jax.tree.map(lambda gradient: gradient * scale, grad_params)
        updates, optimizer = self._optimizer.update(grad_params, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        after = {"params": params, "optimizer": optimizer}
        # A gradient that is no number leaves none in what it leads to: here for parameters, in the rows for the others.
        finite = _all_finite((loss, after))
        return after, (logits, loss, *gradients, finite)

    def _arguments(self, shape: Shape) -> tuple[Any, ...]:
        return (
            self._shapes,
            *self._predictor.minibatch_shapes(shape),
            jax.ShapeDtypeStruct((shape[-1], len(self._labels)), jnp.float32),
            jax.ShapeDtypeStruct((shape[-1],), jnp.float32),
        )


def _all_finite(tree: Any) -> jax.Array:
    """Whether no leaf holds NaN or an infinity, as a boolean scalar."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    # 0 times a number is 0, times anything else NaN; sums are what XLA makes the fastest code of.
    return jnp.isfinite(jnp.sum(jnp.stack([jnp.sum(leaf * 0) for leaf in floats])))
