"""One JSON object a record: columnar by Arrow where every record is plain, exact by orjson otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.json as pa_json

from streamtrain.errors import BadSample
from streamtrain.samples.codec import CodecError
from streamtrain.samples.fields import fields_of
from streamtrain.samples.json_check import join_plain
from streamtrain.samples.schema import Schema
from streamtrain.samples.values import check_values

__all__ = ["JsonCodec"]

JOINED_BYTES_MAX = 1 << 30
"""Arrow counts a block's bytes in 32 bits."""


class JsonCodec:
    """A `RecordCodec`. Fields that the schema does not read are ignored; of a key given twice, the last counts."""

    def __init__(self, schema: Schema) -> None:
        self._fields = fields_of(schema)
        self._parse_options = pa_json.ParseOptions(
            explicit_schema=pa.schema([(name, field.arrow_type) for name, field in self._fields.items()]),
            unexpected_field_behavior="ignore",
        )

    def decode_columns(self, records: Sequence[bytes]) -> pa.Table:
        joined = join_plain(records)
        if joined is None or len(joined) > JOINED_BYTES_MAX:
            raise CodecError("a record is not plain JSON, or they are too long together")
        # One block: Arrow looks for the ends of records only where it has to cut blocks.
        read_options = pa_json.ReadOptions(use_threads=False, block_size=len(joined) + 1)
        try:
            table = pa_json.read_json(pa.BufferReader(joined), read_options, self._parse_options)
        except pa.ArrowException as error:
            raise CodecError(str(error)) from error
        if table.num_rows != len(records):
            raise CodecError(f"{len(records)} records made {table.num_rows} rows")
        return table

    def decode_one(self, record: bytes) -> dict[str, Any]:
        try:
            sample = orjson.loads(record)
        except orjson.JSONDecodeError as error:
            raise BadSample("json", f"the record is not valid JSON: {error}") from error
        if not isinstance(sample, dict):
            kind = "list" if isinstance(sample, list) else "single value"
            raise BadSample("json", f"the record is a {kind}, not a JSON object")
        return check_values(sample, self._fields)
