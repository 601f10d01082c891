"""Settings of embedding tables and their row optimizers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag, model_validator

from streamtrain.settings import Settings, kind_or
from streamtrain.sparse.lifecycle_settings import AnyAdmission, Decay, Expiry, NoAdmission, Unadmitted

__all__ = [
    "Adagrad",
    "Adam",
    "AnyInit",
    "AnyOptimizer",
    "Constant",
    "Ftrl",
    "Normal",
    "RowSettings",
    "RowwiseAdagrad",
    "Sgd",
    "TableSettings",
    "Uniform",
]

Rate = Annotated[float, Field(gt=0, le=1000)]


class Sgd(Settings):
    """w -= learning_rate * (gradient + l2 * w)."""

    kind: Literal["sgd"]
    learning_rate: Rate = 0.05
    """Step size."""
    l2: float = Field(default=0.0, ge=0)
    """Weight decay added to the gradient of touched rows."""


class Adagrad(Settings):
    """Per-element step sizes from the sum of squared gradients (Duchi, Hazan and Singer, JMLR 2011)."""

    kind: Literal["adagrad"] = "adagrad"
    learning_rate: Rate = 0.05
    """Step size."""
    initial_accumulator: float = Field(default=0.1, ge=0)
    """What the sum of squares starts at."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Added to the root of the sum."""
    l2: float = Field(default=0.0, ge=0)
    """Weight decay added to the gradient of touched rows."""


class RowwiseAdagrad(Settings):
    """One step size a row, from the mean of squared gradients: D - 1 floats a row fewer (FBGEMM's)."""

    kind: Literal["rowwise_adagrad"]
    learning_rate: Rate = 0.05
    """Step size."""
    initial_accumulator: float = Field(default=0.1, ge=0)
    """What the sum of mean squares starts at."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Added to the root of the sum."""
    l2: float = Field(default=0.0, ge=0)
    """Weight decay added to the gradient of touched rows."""


class Adam(Settings):
    """Adam on touched rows only, bias-corrected by each row's own number of updates (Kingma and Ba, 2015)."""

    kind: Literal["adam"]
    learning_rate: Rate = 0.001
    """Step size."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the second moment."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    l2: float = Field(default=0.0, ge=0)
    """Weight decay added to the gradient of touched rows."""


class Ftrl(Settings):
    """FTRL-proximal, per element (McMahan et al., KDD 2013)."""

    kind: Literal["ftrl"]
    alpha: Rate = 0.05
    """Step size."""
    beta: float = Field(default=1.0, ge=0)
    """Smooths the first steps."""
    l1: float = Field(default=0.0, ge=0)
    """Makes weights exactly zero."""
    l2: float = Field(default=0.0, ge=0)
    """Shrinks weights."""


AnyOptimizer = Annotated[
    Annotated[Sgd, Tag("sgd")]
    | Annotated[Adagrad, Tag("adagrad")]
    | Annotated[RowwiseAdagrad, Tag("rowwise_adagrad")]
    | Annotated[Adam, Tag("adam")]
    | Annotated[Ftrl, Tag("ftrl")],
    kind_or("adagrad"),
]


class Uniform(Settings):
    """Each weight uniform in [-scale, scale)."""

    kind: Literal["uniform"]
    scale: float = Field(default=0.01, ge=0)
    """Half the width."""


class Normal(Settings):
    """Each weight normal with mean 0."""

    kind: Literal["normal"] = "normal"
    std: float = Field(default=0.01, ge=0)
    """Standard deviation."""


class Constant(Settings):
    """Every weight the same; FTRL and linear models start at 0."""

    kind: Literal["constant"]
    value: float = 0.0
    """The weight."""


AnyInit = Annotated[
    Annotated[Uniform, Tag("uniform")]
    | Annotated[Normal, Tag("normal")]
    | Annotated[Constant, Tag("constant")],
    kind_or("normal"),
]


class RowSettings(Settings):
    """What every kind of embedding table has."""

    dim: int = Field(ge=1, le=4096)
    """Floats a row. `linear` needs one a label; `deepfm` reads the first, one a label, as linear weights."""
    optimizer: AnyOptimizer = Adagrad()
    """The row optimizer."""
    init: AnyInit = Normal()
    """How a new row starts; decided by hash of (seed, table, id), the same in every run."""


class TableSettings(RowSettings):
    """One row for each id, made when the id first comes."""

    kind: Literal["dynamic"] = "dynamic"
    """A row for each id."""
    rows_max: int = Field(default=16_777_216, ge=1, le=2_000_000_000)
    """Bound on rows. When it is reached the daemon stops and says so; address space, not memory, is reserved for it."""
    memory_bytes_max: int | None = Field(default=None, ge=1 << 18)
    """Bound on the memory of this table's rows with all that finds them, in bytes. Rows that are not used leave memory and
    come back from the store before their step, so a store is needed. `rows_max` then bounds rows in memory alone. Default: all
    rows are in memory."""
    admission: AnyAdmission = NoAdmission()
    """Which ids get a row."""
    unadmitted: Unadmitted = "initial"
    """What ids without a row look like where `admission` is not `none`: all the same initial vector, or zeros."""
    expiry: Expiry | None = None
    """When a row is dropped. Default: never."""
    decay: Decay | None = None
    """How a row fades that is not updated. Default: not at all."""

    @model_validator(mode="after")
    def _weights_can_decay(self) -> TableSettings:
        if isinstance(self.optimizer, Ftrl) and self.decay is not None and self.decay.weights < 1:
            raise ValueError(
                "decay.weights: ftrl makes the weights of its slots anew at each update; let decay.slots decay them"
            )
        return self

    @property
    def hashing(self) -> None:
        """None: ids share no rows."""

    @property
    def row_dim(self) -> int:
        """Floats a row: those of a vector."""
        return self.dim
