"""Arrow IPC records: each a stream with many rows, which are samples or trees of samples."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from streamtrain.errors import BadSample
from streamtrain.samples.arrays import fits, is_list
from streamtrain.samples.codec import CodecError, RecordRows
from streamtrain.samples.fields import Field, arrow_schema_of, fields_of
from streamtrain.samples.schema import Schema

__all__ = ["ArrowCodec"]

_SCHEMAS_MAX = 1000
"""Verdicts that are remembered: producers have a few schemas, a broken one may have any number."""


class ArrowCodec:
    """A `RecordCodec`. A record's columns may be of any types that fit; those that nobody reads are dropped unread."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._fields = fields_of(schema)
        self._wanted = arrow_schema_of(schema, self._fields)
        self._names = self._wanted.names
        self._verdicts: dict[pa.Schema, BadSample | None] = {}

    def decode(self, records: Sequence[bytes]) -> RecordRows:
        """As `RecordCodec.decode`."""
        counts = np.zeros(len(records), np.int64)
        bad: dict[int, BadSample] = {}
        tables: list[pa.Table] = []
        for index, record in enumerate(records):
            found = self._opened(record)
            if isinstance(found, BadSample):
                bad[index] = found
            else:
                counts[index] = found.num_rows
                tables.append(found)
        return RecordRows(self._together(tables), counts, bad)

    def _opened(self, record: bytes) -> pa.Table | BadSample:
        """The columns of a record that anybody reads, their content unchecked."""
        try:
            if _is_packed(record):
                return BadSample(
                    "arrow",
                    "its buffers are compressed, and may unpack to any size: write it without, and let Kafka compress "
                    "(compression.type)",
                )
            with pa.ipc.open_stream(record) as reader:
                table = reader.read_all()
        except (pa.ArrowException, OSError, ValueError, struct.error) as error:
            return BadSample("arrow", f"the record is no Arrow IPC stream: {error}")
        verdict = self._verdict(table.schema)
        if verdict is not None:
            return verdict
        there = table.column_names
        return table.select([name for name in self._names if name in there])

    def _verdict(self, schema: pa.Schema) -> BadSample | None:
        if schema not in self._verdicts:
            if len(self._verdicts) >= _SCHEMAS_MAX:
                self._verdicts.clear()
            self._verdicts[schema] = self._judge(list(schema), 0)
        return self._verdicts[schema]

    def _judge(self, found: Sequence[pa.Field], depth: int) -> BadSample | None:
        """What is wrong with the columns of a level and of those below it."""
        levels = self._schema.levels
        at_leaves = depth == len(levels)
        level = "" if at_leaves else levels[depth].name
        own: Mapping[str, Field] = {n: f for n, f in self._fields.items() if f.level == level}
        names = [column.name for column in found]
        for column in found:
            field = own.get(column.name)
            if field is not None and names.count(column.name) > 1:
                return BadSample("type", "two columns have this name", field=column.name)
            if field is not None and not fits(column.type, field):
                detail = f"{field.used_by} reads {field}, the column holds {column.type}"
                return BadSample("type", detail, field=column.name)
        if at_leaves:
            absent = next((label for label in self._schema.labels if label not in names), None)
            return None if absent is None else BadSample("missing", "there is no such column", field=absent)
        children = levels[depth].children
        below = next((column.type for column in found if column.name == children), None)
        if below is None or names.count(children) > 1:
            return BadSample("missing", "there is not one such column of children", field=children)
        if not is_list(below) or not pa.types.is_struct(below.value_type):
            detail = f"schema.levels reads a list of structs, the column holds {below}"
            return BadSample("type", detail, field=children)
        return self._judge([below.value_type.field(i) for i in range(below.value_type.num_fields)], depth + 1)

    def _together(self, tables: Sequence[pa.Table]) -> pa.Table:
        """One table of all rows, of which no value can lead outside of its buffers.

        Raises:
          CodecError: not all of them are well-formed, or their types do not go together.
        """
        if not tables:
            return self._wanted.empty_table()
        try:
            same = all(table.schema == tables[0].schema for table in tables)
            table = pa.concat_tables(tables, promote_options="none" if same else "permissive")
            # What a damaged record claims to hold is not looked at before this.
            table.validate(full=True)
        except (pa.ArrowException, ValueError) as error:
            if len(tables) == 1:
                raise BadSample("arrow", f"the record's content is damaged: {error}") from error
            raise CodecError(str(error)) from error
        return table


def _is_packed(record: bytes) -> bool:
    """Whether a message of the stream has compressed buffers: then a record of 12 kB may claim 400 MB, or all memory.

    Arrow verifies the structure of each message before it hands it out, so following offsets leads nowhere else.
    Source: https://arrow.apache.org/docs/format/Columnar.html, Message.fbs; and FlatBuffers' internals for tables.

    Raises: what pyarrow raises of a record that is no stream.
    """
    for message in pa.ipc.MessageReader.open_stream(record):
        data = message.metadata.to_pybytes()
        header, of_type = _member(data, _root(data), 2), _member(data, _root(data), 1)
        kind = data[of_type] if of_type else 0
        if not header or kind not in (_DICTIONARY_BATCH, _RECORD_BATCH):
            continue
        batch = _behind(data, header)
        if kind == _DICTIONARY_BATCH:
            batch = _behind(data, _member(data, batch, 1))
        if _member(data, batch, 3):
            return True
    return False


_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3
"""Of a message's header: tags of the union MessageHeader."""
_UINT16, _INT32, _UINT32 = struct.Struct("<H"), struct.Struct("<i"), struct.Struct("<I")


def _root(data: bytes) -> int:
    return _behind(data, 0)


def _behind(data: bytes, at: int) -> int:
    """Where the offset at a place leads."""
    return at + int(_UINT32.unpack_from(data, at)[0])


def _member(data: bytes, table: int, number: int) -> int:
    """Where a table's member stands; 0 where it is absent."""
    members = table - _INT32.unpack_from(data, table)[0]
    entry = 4 + 2 * number
    if entry >= _UINT16.unpack_from(data, members)[0]:
        return 0
    offset: int = _UINT16.unpack_from(data, members + entry)[0]
    return table + offset if offset else 0
