"""Single samples as Python values: their exact check, and the table that many of them make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from streamtrain.errors import BadSample
from streamtrain.samples.fields import Field
from streamtrain.samples.schema import LEAF, Schema
from streamtrain.samples.trees import no_children

__all__ = ["TreeChecker", "check_values", "table_of"]

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


class TreeChecker:
    """The exact check of records whose samples are leaves of a tree, or of a sample alone where there are no levels."""

    def __init__(self, schema: Schema, fields: Mapping[str, Field]) -> None:
        names = [*(level.name for level in schema.levels), LEAF]
        self._fields = [{n: f for n, f in fields.items() if f.level == name} for name in names]
        self._levels = schema.levels

    def check(self, record: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[int, int, BadSample]]]:
        """The values that the schema reads, and (depth, node of the record's at that depth, what is wrong there).

        A wrong value stands as None. Where there are no levels it is the record that is wrong.

        Raises:
          BadSample: the record has no shape: something is no list of nodes.
        """
        faults: list[tuple[int, int, BadSample]] = []
        checked = self._node(record, 0, [0] * len(self._fields), faults)
        if faults and not self._levels:
            raise faults[0][2]
        return checked, faults

    def _node(
        self, node: Mapping[str, Any], depth: int, seen: list[int], faults: list[tuple[int, int, BadSample]]
    ) -> dict[str, Any]:
        number = seen[depth]
        seen[depth] += 1
        checked: dict[str, Any] = {}
        for name, field in self._fields[depth].items():
            try:
                checked[name] = _checked(node.get(name), field)
            except BadSample as error:
                checked[name] = None
                faults.append((depth, number, error))
        if depth < len(self._levels):
            checked[self._levels[depth].children] = [
                self._node(child, depth + 1, seen, faults) for child in self._children(node, depth)
            ]
        return checked

    def _children(self, node: Mapping[str, Any], depth: int) -> list[Mapping[str, Any]]:
        name = self._levels[depth].children
        found = node.get(name)
        if found is None or (isinstance(found, list) and None in found):
            raise no_children(name)
        wrong = found
        if isinstance(found, list):
            wrong = next((child for child in found if not isinstance(child, dict)), None)
            if wrong is None:
                return found
        raise BadSample("type", f"schema.levels reads a list of objects, found {_found(wrong)}", field=name)


def table_of(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """The columns of records; a field that one does not name is missing there."""
    arrays = [pa.array([row.get(field.name) for row in rows], field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


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
    found = _found(value)
    hint = "; write 1 or 0" if type(value) is bool and field.type != "string" else ""
    return BadSample("type", f"{field.used_by} reads {field}, found {found}{hint}", field=field.name)


def _found(value: Any) -> str:
    return f"{_JSON_WORDS.get(type(value), type(value).__name__)} ({_shown(value)})"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
