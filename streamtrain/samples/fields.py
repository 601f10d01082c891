"""The fields of a record that a schema reads, and the Arrow type that a codec gives each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from streamtrain.errors import ConfigError
from streamtrain.samples.schema import LEAF, BucketSlot, DenseSlot, Schema, SequenceSlot, SparseSlot

__all__ = ["Field", "FieldType", "arrow_schema_of", "fields_of"]

FieldType = Literal["int", "time", "number", "string"]

_ARROW = {"int": pa.int64(), "time": pa.int64(), "number": pa.float64(), "string": pa.string()}


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a record.

    Attributes:
      name: as the record spells it.
      type: `int` and `time` are 64-bit integers (a columnar file may hold a time as a timestamp), `number` is float64.
      many: whether it is a list.
      used_by: the setting that asks for it, for messages.
      level: of grouped samples, the level whose nodes hold it.
    """

    name: str
    type: FieldType
    many: bool
    used_by: str
    level: str = LEAF

    @property
    def value_type(self) -> pa.DataType:
        """The Arrow type of one value."""
        return _ARROW[self.type]

    @property
    def arrow_type(self) -> pa.DataType:
        """The Arrow type of the column that a codec makes of it."""
        return pa.list_(self.value_type) if self.many else self.value_type

    def __str__(self) -> str:
        word = "integer" if self.type in ("int", "time") else self.type
        return f"a list of {word}s" if self.many else f"{'an' if word == 'integer' else 'a'} {word}"


def fields_of(schema: Schema) -> dict[str, Field]:
    """The fields that `schema` reads, by name, each once.

    Raises:
      ConfigError: two settings read one field as types that do not go together, or at different levels.
    """
    fields: dict[str, Field] = {}
    for field in _asked(schema):
        other = fields.get(field.name)
        fields[field.name] = field if other is None else _merged(other, field)
    return fields


def arrow_schema_of(schema: Schema, fields: Mapping[str, Field]) -> pa.Schema:
    """The columns that a codec makes: those of the root's level, the levels below as lists of structs within it."""
    below: list[pa.Field] = [pa.field(f.name, f.arrow_type) for f in fields.values() if f.level == LEAF]
    for level in reversed(schema.levels):
        own = [pa.field(f.name, f.arrow_type) for f in fields.values() if f.level == level.name]
        below = [*own, pa.field(level.children, pa.list_(pa.struct(below)))]
    return pa.schema(below)


def _asked(schema: Schema) -> Iterator[Field]:
    for label in schema.labels:
        yield Field(label, "number", False, "schema.labels")
    if schema.weight is not None:
        yield Field(schema.weight, "number", False, "schema.weight")
    if schema.event_time is not None:
        yield Field(schema.event_time, "time", False, "schema.event_time")
    for name, slot in schema.slots.items():
        place, level = f"schema.slots.{name}", schema.level(name)
        if isinstance(slot, SparseSlot):
            yield Field(slot.field or name, slot.type, slot.many, place, level)
            if slot.weights is not None:
                yield Field(slot.weights, "number", True, f"{place}.weights", level)
        elif isinstance(slot, SequenceSlot):
            yield Field(slot.field or name, slot.type, True, place, level)
        elif isinstance(slot, DenseSlot):
            yield Field(slot.field or name, "number", slot.size > 1, place, level)
        elif isinstance(slot, BucketSlot):
            yield Field(slot.field or name, "number", False, place, level)


def _merged(one: Field, two: Field) -> Field:
    # An integer serves whoever wants a number, so the narrowest of the types asked for is the field's.
    narrow: tuple[FieldType, ...] = ("int", "time", "number")
    if one.level != two.level:
        # A sample to be served holds all of its fields side by side.
        raise ConfigError(
            f"{two.used_by} reads the field {two.name!r} at the level {two.level or 'of the samples'}, but {one.used_by} reads "
            f"it at the level {one.level or 'of the samples'}; name the fields of different levels apart"
        )
    if one.many == two.many and one.type == two.type:
        return one
    if one.many == two.many and "string" not in (one.type, two.type):
        return min(one, two, key=lambda field: narrow.index(field.type))
    raise ConfigError(
        f"{two.used_by} reads the field {two.name!r} as {two}, but {one.used_by} reads it as {one}; a field has one type"
    )
