"""JSON records, a sample or a tree of samples each: columnar by Arrow all that are plain, exact by orjson the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.json as pa_json

from streamtrain.errors import BadSample
from streamtrain.samples.codec import CodecError, RecordRows
from streamtrain.samples.fields import arrow_schema_of, fields_of
from streamtrain.samples.json_check import PlainCheck
from streamtrain.samples.problems import Fault
from streamtrain.samples.schema import Schema
from streamtrain.samples.values import TreeChecker, table_of

__all__ = ["JsonCodec"]

JOINED_BYTES_MAX = 1 << 30
"""Arrow counts a block's bytes in 32 bits."""


class JsonCodec:
    """A `RecordCodec`. Fields that the schema does not read are ignored; of a key given twice, the last counts."""

    def __init__(self, schema: Schema) -> None:
        fields = fields_of(schema)
        self._schema = arrow_schema_of(schema, fields)
        self._plain = PlainCheck(schema, fields)
        self._tree = TreeChecker(schema, fields)
        self._parse_options = pa_json.ParseOptions(
            explicit_schema=self._schema, unexpected_field_behavior="ignore"
        )

    def decode(self, records: Sequence[bytes]) -> RecordRows:
        """As `RecordCodec.decode`."""
        plain = self._plain.of(records)
        if plain.all():
            try:
                return RecordRows(self.columns(records))
            except CodecError:
                if len(records) > 1:
                    raise
                plain[:] = False
        exact = [self.exact(records[i]) for i in np.flatnonzero(~plain).tolist()]
        return self._both(records, plain, exact)

    def columns(self, records: Sequence[bytes]) -> pa.Table:
        """Plain records as a table.

        Raises:
          CodecError: Arrow does not take them.
        """
        joined = b"\n".join(records)
        if len(joined) > JOINED_BYTES_MAX:
            raise CodecError("the records are too long together")
        if joined.count(b"\n") >= len(records):
            # A plain payload has newlines between tokens only, where a space means the same.
            joined = b"\n".join([record.replace(b"\n", b" ") for record in records])
        # One block: Arrow looks for the ends of records only where it has to cut blocks.
        read_options = pa_json.ReadOptions(use_threads=False, block_size=len(joined) + 1)
        try:
            table = pa_json.read_json(pa.BufferReader(joined), read_options, self._parse_options)
        except pa.ArrowException as error:
            raise CodecError(str(error)) from error
        if table.num_rows != len(records):
            raise CodecError(f"{len(records)} records made {table.num_rows} rows")
        return table

    def exact(self, record: bytes) -> tuple[dict[str, Any], list[tuple[int, int, BadSample]]] | BadSample:
        """One record, exactly: its values and the faults of its nodes, or why it is refused."""
        try:
            sample = orjson.loads(record)
        except orjson.JSONDecodeError as error:
            return BadSample("json", f"the record is not valid JSON: {error}")
        if not isinstance(sample, dict):
            kind = "list" if isinstance(sample, list) else "single value"
            return BadSample("json", f"the record is a {kind}, not a JSON object")
        try:
            return self._tree.check(sample)
        except BadSample as error:
            return error

    def _both(self, records: Sequence[bytes], plain: np.ndarray, exact: Sequence[Any]) -> RecordRows:
        """The plain records by columns, between them those of `exact` that are records."""
        bad: dict[int, BadSample] = {}
        faults: list[Fault] = []
        rows: list[dict[str, Any]] = []
        places: list[int] = []
        for index, found in zip(np.flatnonzero(~plain).tolist(), exact, strict=True):
            if isinstance(found, BadSample):
                bad[index] = found
                continue
            row, wrong = found
            rows.append(row)
            places.append(index)
            faults += [Fault(index, depth, node, error) for depth, node, error in wrong]
        kept = [records[i] for i in np.flatnonzero(plain).tolist()]
        table = self.columns(kept) if kept else self._schema.empty_table()
        if rows:
            slow, before = table_of(rows, self._schema), 0
            pieces = []
            # The n-th exact row stands behind as many plain ones as there are before its record.
            for n, at in enumerate(np.cumsum(plain)[places].tolist()):
                pieces += [table.slice(before, at - before), slow.slice(n, 1)]
                before = at
            table = pa.concat_tables([*pieces, table.slice(before)]).combine_chunks()
        counts = np.ones(len(records), np.int64)
        counts[list(bad)] = 0
        return RecordRows(table, counts, bad, faults)
