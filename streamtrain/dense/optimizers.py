"""Settings of the dense optimizer, and the optax transformation that they stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, Tag

from streamtrain.settings import Settings, kind_or

if TYPE_CHECKING:
    import optax

__all__ = [
    "AnyDenseOptimizer",
    "DenseAdagrad",
    "DenseAdam",
    "DenseAdamW",
    "DenseMomentum",
    "DenseSgd",
    "transformation",
]

Rate = Annotated[float, Field(gt=0, le=1000)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class _DenseOptimizer(Settings):
    clip_norm: float | None = Field(default=None, gt=0)
    """Gradients whose norm over all parameters is larger are scaled down to it. Default: no clipping."""


class DenseSgd(_DenseOptimizer):
    """Plain stochastic gradient descent."""

    kind: Literal["sgd"]
    learning_rate: Rate = 0.01
    """Step size."""


class DenseMomentum(_DenseOptimizer):
    """Gradient descent with momentum."""

    kind: Literal["momentum"]
    learning_rate: Rate = 0.01
    """Step size."""
    momentum: Decay = 0.9
    """Decay of the velocity."""
    nesterov: bool = False
    """Whether the step looks ahead (Nesterov)."""


class DenseAdagrad(_DenseOptimizer):
    """Per-element step sizes from the sum of squared gradients (Duchi, Hazan and Singer, JMLR 2011)."""

    kind: Literal["adagrad"]
    learning_rate: Rate = 0.01
    """Step size."""
    initial_accumulator: float = Field(default=0.1, ge=0)
    """What the sum of squares starts at."""
    epsilon: float = Field(default=1e-7, gt=0)
    """Added under the root."""


class DenseAdam(_DenseOptimizer):
    """Adam (Kingma and Ba, 2015)."""

    kind: Literal["adam"] = "adam"
    learning_rate: Rate = 0.001
    """Step size."""
    beta1: Decay = 0.9
    """Decay of the first moment."""
    beta2: Decay = 0.999
    """Decay of the second moment."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""


class DenseAdamW(_DenseOptimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""

    kind: Literal["adamw"]
    learning_rate: Rate = 0.001
    """Step size."""
    beta1: Decay = 0.9
    """Decay of the first moment."""
    beta2: Decay = 0.999
    """Decay of the second moment."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(default=0.0001, ge=0)
    """Each step shrinks every parameter by learning_rate times this."""


AnyDenseOptimizer = Annotated[
    Annotated[DenseSgd, Tag("sgd")]
    | Annotated[DenseMomentum, Tag("momentum")]
    | Annotated[DenseAdagrad, Tag("adagrad")]
    | Annotated[DenseAdam, Tag("adam")]
    | Annotated[DenseAdamW, Tag("adamw")],
    kind_or("adam"),
]


def transformation(settings: AnyDenseOptimizer) -> optax.GradientTransformation:
    """The optax transformation of these settings."""
    # Settings are read by every command; optax and JAX take a second to import and few commands train.
    import optax

    update = _update(settings)
    return (
        update
        if settings.clip_norm is None
        else optax.chain(optax.clip_by_global_norm(settings.clip_norm), update)
    )


def _update(settings: AnyDenseOptimizer) -> optax.GradientTransformation:
    import optax

    match settings:
        case DenseSgd():
            return optax.sgd(settings.learning_rate)
        case DenseMomentum():
            return optax.sgd(settings.learning_rate, momentum=settings.momentum, nesterov=settings.nesterov)
        case DenseAdagrad():
            return optax.adagrad(settings.learning_rate, settings.initial_accumulator, settings.epsilon)
        case DenseAdam():
            return optax.adam(settings.learning_rate, settings.beta1, settings.beta2, settings.epsilon)
        case DenseAdamW():
            return optax.adamw(
                settings.learning_rate,
                settings.beta1,
                settings.beta2,
                settings.epsilon,
                weight_decay=settings.weight_decay,
            )
