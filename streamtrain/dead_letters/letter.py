"""One refused record with its original bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from streamtrain.errors import BadSample
from streamtrain.sources import TIME_UNKNOWN, Chunk

__all__ = ["DeadLetter", "letters_of"]

MESSAGE_CHARACTERS_MAX = 1000


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A refused record. A crash may repeat one, so readers tell them apart by partition and offset.

    Attributes:
      partition, offset: where the record stands.
      time_ms: the record's time, milliseconds since 1970; None where it has none.
      reason: the fixed word of `BadSample`.
      field: the field at fault, or None.
      message: what is wrong, in words.
      key: the record's key; None where it has none, or the source has no keys.
      value: the original bytes, or their beginning; None of a null record. Of a row of a columnar file: JSON.
      value_bytes: how many bytes the value had before it was cut.
    """

    partition: str
    offset: int
    time_ms: int | None
    reason: str
    field: str | None
    message: str
    key: bytes | None
    value: bytes | None
    value_bytes: int

    @property
    def cut(self) -> bool:
        """Whether `value` is only the beginning."""
        return self.value is not None and len(self.value) < self.value_bytes


def letters_of(chunk: Chunk, bad: Sequence[BadSample], bytes_max: int) -> Iterator[DeadLetter]:
    """The letters of a chunk's refused records, one at a time: a chunk may hold many that are large.

    Args:
      chunk: as the source gave it.
      bad: its refused records, with their offsets.
      bytes_max: bound on key and value together; what is longer is cut.
    """
    rows = np.searchsorted(chunk.offsets, [sample.offset or 0 for sample in bad])
    for row, sample in zip(rows.tolist(), bad, strict=True):
        key = None if chunk.keys is None else chunk.keys[row]
        value = _value(chunk, row)
        time_ms = int(chunk.times_ms[row])
        kept_key = key if key is None else key[:bytes_max]
        room = bytes_max - len(kept_key or b"")
        yield DeadLetter(
            chunk.partition,
            int(chunk.offsets[row]),
            None if time_ms == TIME_UNKNOWN else time_ms,
            sample.reason,
            sample.field,
            sample.detail[:MESSAGE_CHARACTERS_MAX],
            kept_key,
            value if value is None else value[:room],
            0 if value is None else len(value),
        )


def _value(chunk: Chunk, row: int) -> bytes | None:
    if isinstance(chunk.records, pa.Table):
        (values,) = chunk.records.slice(row, 1).to_pylist()
        return json.dumps(values, default=str).encode()
    return chunk.records[row]
