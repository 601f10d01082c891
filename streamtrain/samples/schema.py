"""What a sample looks like: its slots, labels, weight and event time, as the user's TOML states them."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, Tag, model_validator

from streamtrain.settings import Settings, kind_or

__all__ = [
    "LEAF",
    "AnySlot",
    "BucketSlot",
    "CrossSlot",
    "DenseSlot",
    "Level",
    "Schema",
    "SequenceSlot",
    "SparseSlot",
]

Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,63}$")]

LEAF = ""
"""The name of the level of the leaves, which are the samples; no level of a schema can have it."""


class Level(Settings):
    """Of grouped samples, a level of their trees above the samples: what its nodes hold, all samples under them share.

    Levels stand from the root down, such as
    `levels = [{name = "user", children = "ads"}, {name = "ad", children = "creatives"}]`. The samples are the leaves;
    labels and weight are their own. Without levels, a record is a sample.
    """

    name: Name
    """What slots call it in `level`."""
    children: str = Field(min_length=1)
    """The field of a node that holds the list of the nodes below it, at the last level the list of samples."""


class SparseSlot(Settings):
    """A slot of feature ids: one or many of them a sample, each with an optional weight."""

    kind: Literal["sparse"] = "sparse"
    field: str | None = None
    """The field of the record to read. Default: the slot's name."""
    level: str | None = None
    """The level of grouped samples whose nodes hold the field, one of `schema.levels`. Default: the samples themselves."""
    type: Literal["int", "string"] = "int"
    """Whether the record holds 64-bit integers or strings. `5` and `"5"` are different features."""
    many: bool = False
    """Whether the field holds a list of ids rather than one id."""
    weights: str | None = None
    """The field that holds one float per id of the list. Needs `many = true` and `pooling = "weighted"`."""
    table: str | None = None
    """The embedding table. Default: the only table, where there is one."""
    shares: str | None = None
    """Another slot whose table and feature ids this slot shares: the same value is the same row."""
    pooling: Literal["sum", "mean", "weighted"] = "sum"
    """How the rows of many ids become one vector. `weighted` is the sum of weight times row."""

    @model_validator(mode="after")
    def _consistent(self) -> SparseSlot:
        if self.weights is not None and not self.many:
            raise ValueError("weights need many = true")
        if (self.weights is not None) != (self.pooling == "weighted"):
            raise ValueError('weights and pooling = "weighted" go together')
        return self


class SequenceSlot(Settings):
    """A slot of ordered ids, oldest first, such as a behaviour history."""

    kind: Literal["sequence"]
    field: str | None = None
    """The field of the record to read (a list). Default: the slot's name."""
    level: str | None = None
    """The level of grouped samples whose nodes hold the field, one of `schema.levels`. Default: the samples themselves."""
    type: Literal["int", "string"] = "int"
    """Whether the record holds 64-bit integers or strings."""
    length_max: int = Field(default=50, ge=1, le=4096)
    """Longer lists keep their last `length_max` ids, which are the newest."""
    table: str | None = None
    """The embedding table. Default: the only table, where there is one."""
    shares: str | None = None
    """Another slot whose table and feature ids this slot shares: a history of items shares with the item."""
    pooling: Literal["none", "sum", "mean"] = "none"
    """`none` hands the model the padded sequence and its mask; the others pool it like a sparse slot."""


class DenseSlot(Settings):
    """A slot of floats that the model sees as they are."""

    kind: Literal["dense"]
    field: str | None = None
    """The field of the record to read. Default: the slot's name."""
    level: str | None = None
    """The level of grouped samples whose nodes hold the field, one of `schema.levels`. Default: the samples themselves."""
    size: int = Field(default=1, ge=1, le=65536)
    """How many floats. 1 reads a number, more reads a list of exactly that many. A missing one is zeros."""


class BucketSlot(Settings):
    """A number turned into one feature id: the bucket that it falls into."""

    kind: Literal["bucket"]
    field: str | None = None
    """The field of the record to read (a number). Default: the slot's name."""
    level: str | None = None
    """The level of grouped samples whose nodes hold the field, one of `schema.levels`. Default: the samples themselves."""
    boundaries: list[float] = Field(min_length=1, max_length=65536)
    """Ascending. Bucket 0 is below the first; bucket i holds boundaries[i-1] <= number < boundaries[i]."""
    table: str | None = None
    """The embedding table. Default: the only table, where there is one."""
    pooling: Literal["sum"] = "sum"
    """A bucket is one id."""

    @model_validator(mode="after")
    def _ascending(self) -> BucketSlot:
        # Written so that a NaN fails too.
        if not all(a < b for a, b in pairwise([-math.inf, *self.boundaries, math.inf])):
            raise ValueError("boundaries must be finite and ascending, each larger than the one before")
        return self


class CrossSlot(Settings):
    """The combinations of the ids of two or more sparse, bucket or cross slots, each a feature id of its own.

    In grouped samples it belongs to the deepest of the levels of its parts.
    """

    kind: Literal["cross"]
    of: list[str] = Field(min_length=2, max_length=4)
    """The slots to combine. A sample where one of them is empty has no combination."""
    combinations_max: int = Field(default=256, ge=1, le=65536)
    """A sample with more combinations than this is a bad sample."""
    table: str | None = None
    """The embedding table. Default: the only table, where there is one."""
    pooling: Literal["sum", "mean"] = "sum"
    """How the rows of many combinations become one vector."""


AnySlot = Annotated[
    Annotated[SparseSlot, Tag("sparse")]
    | Annotated[SequenceSlot, Tag("sequence")]
    | Annotated[DenseSlot, Tag("dense")]
    | Annotated[BucketSlot, Tag("bucket")]
    | Annotated[CrossSlot, Tag("cross")],
    kind_or("sparse"),
]


class Schema(Settings):
    """The samples of a stream."""

    labels: list[Name] = Field(min_length=1, max_length=64)
    """Fields that hold a number from 0 to 1, one a task. A sample without one of them is bad."""
    event_time: str | None = None
    """Field with the event time in milliseconds since 1970 (an integer). Default: the record's own time."""
    event_time_ahead_max_s: int = Field(default=3600, ge=0, le=10**10)
    """A sample whose `event_time` is further ahead of its record's own time is bad: one time from the far future would
    hold the watermark there for good. Kafka has such a bound for record times, `message.timestamp.after.max.ms`. Rows of
    files have no time of their own and are not judged."""
    weight: str | None = None
    """Field with the sample's weight, a number >= 0. Default, also where it is missing: 1."""
    slots: dict[Name, AnySlot] = Field(min_length=1, max_length=4096)
    """The slots by name."""
    levels: list[Level] = Field(default=[], max_length=8)
    """The levels of grouped samples above the samples, the root's first."""

    @model_validator(mode="after")
    def _references(self) -> Schema:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must be distinct")
        self._check_levels()
        seen: set[str] = set()
        for name, slot in self.slots.items():
            if isinstance(slot, (SparseSlot, SequenceSlot)) and slot.shares is not None:
                self._check_sharing(name, slot)
            if isinstance(slot, CrossSlot):
                for part in slot.of:
                    crossable = isinstance(self.slots.get(part), (SparseSlot, BucketSlot, CrossSlot))
                    if part not in seen or not crossable:
                        raise ValueError(
                            f"slots.{name}.of: {part!r} is not a sparse, bucket or cross slot above it"
                        )
            seen.add(name)
        return self

    def _check_levels(self) -> None:
        children = {level.name: level.children for level in self.levels}
        if len(children) != len(self.levels):
            raise ValueError("levels must have distinct names")
        for name, slot in self.slots.items():
            level = None if isinstance(slot, CrossSlot) else slot.level
            if level is None or isinstance(slot, CrossSlot):
                continue
            if level not in children:
                there = f"there are: {', '.join(children)}" if children else "the schema has no levels"
                raise ValueError(f"slots.{name}.level: {level!r} is not one of `levels`; {there}")
            if (slot.field or name) == children[level]:
                raise ValueError(
                    f"slots.{name}: its field {children[level]!r} holds the children of level {level!r}"
                )

    def _check_sharing(self, name: str, slot: SparseSlot | SequenceSlot) -> None:
        other = self.slots.get(slot.shares or "")
        place = f"slots.{name}.shares: {slot.shares!r}"
        if not isinstance(other, (SparseSlot, SequenceSlot)) or other.shares is not None:
            raise ValueError(f"{place} is not a sparse or sequence slot that owns its ids")
        if other.type != slot.type:
            raise ValueError(f"{place} holds {other.type} ids, this slot {slot.type}")
        if slot.table is not None:
            raise ValueError(f"slots.{name}: give shares or table, not both")

    def namespace(self, name: str) -> str:
        """The namespace of a slot's feature ids: its own name, or that of the slot it shares with."""
        return getattr(self.slots[name], "shares", None) or name

    def table(self, name: str) -> str | None:
        """The table that a slot names, itself or through the slot it shares with; None leaves it to the default."""
        return getattr(self.slots[self.namespace(name)], "table", None)

    def level(self, name: str) -> str:
        """The level that a slot belongs to, LEAF where that is the samples."""
        slot = self.slots[name]
        if not isinstance(slot, CrossSlot):
            return slot.level or LEAF
        depths = [*(level.name for level in self.levels), LEAF]
        return max(map(self.level, slot.of), key=depths.index)
