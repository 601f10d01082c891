"""Single samples as Python values: their exact check, and the table that many of them make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from streamtrain.errors import BadSample
from streamtrain.samples.fields import Field

__all__ = ["check_values", "table_of"]

_JSON_WORDS = {
    bool: "true or false",
    int: "an integer",
    float: "a float",
    str: "a string",
    list: "a list",
    dict: "an object",
}


def check_values(sample: Mapping[str, Any], fields: Mapping[str, Field]) -> dict[str, Any]:
    """The values of the fields that the schema reads, None where one is missing. Others are ignored.

    Numpy's scalars and arrays, and tuples, count as Python's numbers and lists.

    Raises:
      BadSample: a value is of the wrong type; `field` names it.
    """
    return {name: _checked(sample.get(name), field) for name, field in fields.items()}


def table_of(rows: Sequence[Mapping[str, Any]], fields: Mapping[str, Field]) -> pa.Table:
    """The columns of samples; a field that one does not name is missing there."""
    arrays = [pa.array([row.get(name) for row in rows], field.arrow_type) for name, field in fields.items()]
    return pa.table(arrays, names=list(fields))


def _checked(value: Any, field: Field) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None:
        return None
    if not field.many:
        return _one(value, field)
    if not isinstance(value, list | tuple):
        raise _wrong(value, field)
    # A null in a list passes here: the columns' check refuses it, whichever way the record came.
    return [None if item is None else _one(item, field) for item in value]


def _one(value: Any, field: Field) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if field.type == "string":
        if type(value) is str:
            return _unicode(value, field)
    elif field.type == "number":
        if type(value) is float:
            return value
        if type(value) is int:
            return _float(value)
    elif type(value) is int:
        if -(2**63) <= value < 2**63:
            return value
        raise BadSample("type", f"{_shown(value)} is beyond 64-bit integers with sign", field=field.name)
    raise _wrong(value, field)


def _float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        # As a float would have been; the columns' check refuses it as not finite.
        return float("inf")


def _unicode(value: str, field: Field) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadSample(
            "type", f"{_shown(value)} is not valid Unicode: {error.reason}", field=field.name
        ) from error
    return value


def _wrong(value: Any, field: Field) -> BadSample:
    found = f"{_JSON_WORDS.get(type(value), type(value).__name__)} ({_shown(value)})"
    hint = "; write 1 or 0" if type(value) is bool and field.type != "string" else ""
    return BadSample("type", f"{field.used_by} reads {field}, found {found}{hint}", field=field.name)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
