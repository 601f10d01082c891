"""Records as browsers send them to a tracking pixel: the codec plug-in `query`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import pyarrow as pa

from streamtrain.errors import BadSample
from streamtrain.samples.codec import RecordRows
from streamtrain.samples.fields import Field, arrow_schema_of, fields_of
from streamtrain.samples.schema import Schema

__all__ = ["QueryCodec"]

_READ = {"int": int, "time": int, "number": float, "string": str}
_FIELDS_MAX = 1000


class QueryCodec:
    """A `RecordCodec` of `name=value&name=value`, one sample a record. A list is a name that is repeated."""

    def __init__(self, schema: Schema) -> None:
        self._fields = fields_of(schema)
        self._schema = arrow_schema_of(schema, self._fields)

    def decode(self, records: Sequence[bytes]) -> RecordRows:
        """As `RecordCodec.decode`."""
        counts, bad = np.ones(len(records), np.int64), dict[int, BadSample]()
        rows: list[dict[str, Any]] = []
        for index, record in enumerate(records):
            try:
                rows.append(self._row(record))
            except BadSample as error:
                counts[index], bad[index] = 0, error
        return RecordRows(pa.Table.from_pylist(rows, self._schema), counts, bad)

    def _row(self, record: bytes) -> dict[str, Any]:
        try:
            found = parse_qs(record.decode(), max_num_fields=_FIELDS_MAX)
        except ValueError as error:
            raise BadSample("query", f"the record is no query string: {error}") from error
        return {name: _value(field, found) for name, field in self._fields.items()}


def _value(field: Field, found: Mapping[str, list[str]]) -> Any:
    """The value of a field, None where the record has none; the daemon knows whether it may be missing."""
    texts = found.get(field.name)
    if texts is None:
        return None
    if not field.many and len(texts) > 1:
        raise BadSample("type", f"it is given {len(texts)} times", field=field.name)
    try:
        values = [_READ[field.type](text) for text in texts]
    except ValueError as error:
        raise BadSample("type", f"not {field}: {texts}", field=field.name) from error
    if field.type in ("int", "time") and not all(-(2**63) <= value < 2**63 for value in values):
        raise BadSample("range", f"not of 64 bits: {texts}", field=field.name)
    return values if field.many else values[0]
