"""Rows of files and tables as messages: a JSON object each, with an optional key."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from streamtrain.errors import ConfigError
from streamtrain.samples.codec import file_codec_of

__all__ = ["Message", "file_batches", "messages_of"]


class Message(NamedTuple):
    """A key, which decides the partition (None: any), and a JSON object."""

    key: bytes | None
    value: bytes


def messages_of(table: pa.Table, key: str | None = None) -> list[Message]:
    """A message a row. Times become milliseconds since 1970, as samples want them; nulls are left out.

    Args:
      table: any columns that JSON can say.
      key: the column whose text is each message's key.

    Raises:
      ConfigError: there is no such column.
    """
    if key is not None and key not in table.column_names:
        raise ConfigError(
            f"there is no field {key!r} to be the key; there are: {', '.join(table.column_names)}"
        )
    names = table.column_names
    columns = [column.to_pylist() for column in table.columns]
    values = [
        orjson.dumps(
            {n: v for n, v in zip(names, row) if v is not None}, _plain, orjson.OPT_PASSTHROUGH_DATETIME
        )
        for row in zip(*columns)
    ]
    if key is None:
        return [Message(None, value) for value in values]
    return [Message(_key(k), value) for k, value in zip(columns[names.index(key)], values)]


def file_batches(paths: Iterable[Path], batch_size: int, key: str | None = None) -> Iterator[list[Message]]:
    """The rows of files, in order, as messages. JSON lines pass as they are; rows of Parquet become JSON.

    Raises:
      ConfigError: no codec reads a file, or `key` is no field of it.
      OSError, SourceError: a file cannot be read.
    """
    for path in paths:
        codec = file_codec_of(path)
        columns = pq.read_schema(path).names if path.suffix.lower() in (".parquet", ".pq") else []
        for run in codec.rows(path, 0, columns, batch_size):
            if isinstance(run.records, pa.Table):
                yield messages_of(run.records, key)
            elif key is None:
                yield [Message(None, record) for record in run.records]
            else:
                yield [Message(_key_in(record, key, path), record) for record in run.records]


def _key_in(record: bytes, key: str, path: Path) -> bytes | None:
    try:
        return _key(orjson.loads(record).get(key))
    except (orjson.JSONDecodeError, AttributeError) as error:
        raise ConfigError(
            f"{path}: {record[:80]!r} is no JSON object, so its key {key!r} cannot be found"
        ) from error


def _key(value: Any) -> bytes | None:
    return None if value is None else str(value).encode()


def _plain(value: Any) -> Any:
    """What orjson cannot say by itself."""
    if isinstance(value, datetime.datetime):
        # Arrow's times without a zone are UTC.
        zoned = value if value.tzinfo else value.replace(tzinfo=datetime.UTC)
        return round(zoned.timestamp() * 1000)
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    raise TypeError(f"JSON has no form for {type(value).__name__}")
