"""Settings of the life of a row: which ids get one, when it is dropped, how it fades. `docs/features.md` compares them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from streamtrain.settings import Settings

__all__ = [
    "AnyAdmission",
    "CountAdmission",
    "CountingBloomAdmission",
    "Decay",
    "Expiry",
    "NoAdmission",
    "OwnAdmission",
    "ProbabilityAdmission",
    "Unadmitted",
]

STEPS_MAX = 2**31 - 1
"""Steps of rows are kept modulo 2^32, so that no time between two may be longer."""

Unadmitted = Literal["initial", "zero"]

Steps = Annotated[int, Field(ge=1, le=STEPS_MAX)]


def _names_an_object(path: str) -> str:
    if not re.fullmatch(r"[\w.]+:\w+", path):
        raise ValueError("write it as module:name, such as my_rules:weak_and_rare")
    return path


Path = Annotated[str, AfterValidator(_names_an_object)]


class NoAdmission(Settings):
    """Every id has a row from its first occurrence on."""

    kind: Literal["none"] = "none"
    """Every id has a row."""


class CountAdmission(Settings):
    """An id has a row once it has occurred often enough. Exact: every id without a row is remembered."""

    kind: Literal["count"]
    """A row after `threshold` occurrences, counted exactly."""
    threshold: int = Field(ge=2, lt=2**32)
    """Occurrences, that of the sample included, from which on an id has a row."""
    ids_max: int = Field(default=16_777_216, ge=1, le=1_000_000_000)
    """Bound on ids that are counted at once, of 24 to 40 bytes each. Where it is reached counts are halved, a share after
    the other, and those that are 0 then are forgotten, until there is room."""
    halve_every_steps: Steps | None = None
    """All counts are halved once in so many steps, a share of them each step. Default: never."""


class CountingBloomAdmission(Settings):
    """As `count`, in memory of fixed size: counts may be too high by chance, so that a few ids have a row early."""

    kind: Literal["counting_bloom"]
    """A row after `threshold` occurrences, counted by a blocked counting Bloom filter."""
    threshold: int = Field(ge=2, le=255)
    """Occurrences, that of the sample included, from which on an id has a row."""
    expected_ids: int = Field(ge=1, le=10_000_000_000)
    """Distinct ids without a row that are counted at once. The filter's size follows from it."""
    error: float = Field(default=0.01, ge=1e-6, le=0.5)
    """The chance, with that many ids, that one which never came seems to have come."""
    halve_every_steps: Steps | None = None
    """All counts are halved once in so many steps, a share of them each step, so that ids that came long ago make room.
    Default: never; then the filter fills, and in the end admits everything."""


class ProbabilityAdmission(Settings):
    """Each occurrence of an id without a row gives it one by chance: an id that comes n times has one with 1-(1-p)^n."""

    kind: Literal["probability"]
    """A row by chance at each occurrence, decided by hash of (seed, table, id, step)."""
    p: float = Field(gt=0, le=1)
    """The chance, of each occurrence."""


class OwnAdmission(Settings):
    """A rule of your own: see `streamtrain.sparse.admission.OwnRule`. Whatever else stands here is passed to it."""

    model_config = ConfigDict(extra="allow")

    kind: Path
    """`module:Class`."""


_OWN = "module:Class"


def _kind_of(value: Any) -> str:
    kind = value.get("kind", "none") if isinstance(value, dict) else getattr(value, "kind", "")
    return _OWN if ":" in str(kind) else str(kind)


AnyAdmission = Annotated[
    Annotated[NoAdmission, Tag("none")]
    | Annotated[CountAdmission, Tag("count")]
    | Annotated[CountingBloomAdmission, Tag("counting_bloom")]
    | Annotated[ProbabilityAdmission, Tag("probability")]
    | Annotated[OwnAdmission, Tag(_OWN)],
    Discriminator(_kind_of),
]


class Expiry(Settings):
    """When a row is dropped: where any of the rules says so. What an id had learned is gone then, and it starts anew.

    Rows are looked at in turn, a share in each step, so that a row goes at most `sweep_steps` after it could.
    """

    after_steps: Steps | None = None
    """Drops rows that were not updated for more than so many steps."""
    norm_min: float | None = Field(default=None, gt=0)
    """Drops rows whose weights have an L2 norm below it (after `decay`, where the table has one)."""
    norm_after_count: int = Field(default=10, ge=0, lt=2**32)
    """`norm_min` leaves rows alone that learned from fewer occurrences."""
    rule: Path | None = None
    """`module:function` of your own: see `streamtrain.sparse.expiry.ExpiryRule`."""
    sweep_steps: Steps = 10_000
    """Steps in which every row is looked at once."""

    @model_validator(mode="after")
    def _has_a_rule(self) -> Expiry:
        if self.after_steps is None and self.norm_min is None and self.rule is None:
            raise ValueError(
                "name at least one of after_steps, norm_min and rule: without them no row expires"
            )
        return self


class Decay(Settings):
    """How a row fades that is not updated, exactly as if it were multiplied at each multiple of `every_steps`."""

    every_steps: Steps
    """Steps between two multiplications."""
    weights: float = Field(default=1.0, gt=0, le=1)
    """What weights are multiplied by."""
    slots: float = Field(default=1.0, gt=0, le=1)
    """What the optimizer's statistics are multiplied by: sums of squares, moments, FTRL's z and n; not Adam's count."""

    @model_validator(mode="after")
    def _does_something(self) -> Decay:
        if self.weights == self.slots == 1.0:
            raise ValueError("set weights or slots below 1: without that nothing decays")
        return self
