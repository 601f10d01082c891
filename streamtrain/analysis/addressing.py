"""From what a person types to a feature id, by docs/feature-ids.md and the schema that the log holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from streamtrain.errors import ConfigError
from streamtrain.layout import Layout
from streamtrain.samples.schema import BucketSlot, CrossSlot, DenseSlot, Schema, SequenceSlot, SparseSlot

__all__ = ["id_of", "raw_id", "slots_of_table"]


def raw_id(text: str) -> int:
    """An id as a decimal number or, after 0x, a hexadecimal one. Raises ConfigError."""
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if not 0 <= number < 2**64:
        raise ConfigError(
            f"--id {text}: an id is a number from 0 to 2^64 - 1, such as 42 or 0x2a; to give a slot's value, add --slot NAME"
        )
    return number


def id_of(job: Mapping[str, Any], slot: str, values: Sequence[str]) -> int:
    """The id that a slot gives a value; a cross takes one value for each of its parts.

    Args:
      job: the job, as `model.json` has it.

    Raises:
      ConfigError: there is no such slot, or it has no ids, or the values do not fit it.
    """
    schema = Schema.model_validate(job["schema"])
    if slot not in schema.slots:
        raise ConfigError(f"--slot {slot}: there is no such slot; there are: {', '.join(schema.slots)}")
    wanted = _width(schema, slot)
    if len(values) != wanted:
        raise ConfigError(f"--slot {slot} takes {wanted} value{'s' * (wanted > 1)}, not {len(values)}")
    return _id(schema, slot, list(values))


def slots_of_table(job: Mapping[str, Any], table: str) -> list[str]:
    """The slots whose ids are rows of a table, pooled ones first."""
    dims = {name: int(settings["dim"]) for name, settings in job["tables"].items()}
    layout = Layout.of(Schema.model_validate(job["schema"]), dims)
    named = [(c.table, c.name) for c in layout.pooled] + [(s.table, s.name) for s in layout.sequences]
    return [slot for owner, slot in named if owner == table]


def _width(schema: Schema, name: str) -> int:
    """How many values make one id of a slot."""
    slot = schema.slots[name]
    if isinstance(slot, DenseSlot):
        raise ConfigError(f"--slot {name}: a dense slot has no ids and no rows")
    return sum(_width(schema, part) for part in slot.of) if isinstance(slot, CrossSlot) else 1


def _id(schema: Schema, name: str, values: list[str]) -> int:
    """The id of a slot; takes the values that it needs from the front of `values`."""
    # numba is loaded with it, which nothing else here needs.
    from streamtrain.samples.hashing import cross_id, feature_id

    slot = schema.slots[name]
    if isinstance(slot, CrossSlot):
        return cross_id(name, [_id(schema, part, values) for part in slot.of])
    text = values.pop(0)
    if isinstance(slot, BucketSlot):
        number = _number(name, text)
        return feature_id(name, int(np.searchsorted(np.asarray(slot.boundaries), number, side="right")))
    assert isinstance(slot, (SparseSlot, SequenceSlot))
    return feature_id(schema.namespace(name), text if slot.type == "string" else _integer(name, text))


def _integer(slot: str, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 2**63
    if not -(2**63) <= number < 2**63:
        raise ConfigError(f"--slot {slot} holds integers of 64 bits with sign, not {text!r}")
    return number


def _number(slot: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = np.nan
    if not np.isfinite(number):
        raise ConfigError(f"--slot {slot} turns a finite number into its bucket; {text!r} is none")
    return number
