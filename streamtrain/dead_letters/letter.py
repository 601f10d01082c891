"""One refused record with its original bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

import numpy as np
import pyarrow as pa

from streamtrain.errors import BadSample
from streamtrain.sources import TIME_UNKNOWN, Chunk

__all__ = ["DeadLetter", "letters_of"]

MESSAGE_CHARACTERS_MAX = 1000
LEAVES_CHARACTERS_MAX = 1000


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record of which something was refused, once whatever that was. A crash may repeat one, so readers tell them apart by
    partition and offset; a restart in the midst of a record repeats it with those of its leaves that it had not learned.

    Attributes:
      partition, offset: where the record stands.
      time_ms: the record's time, milliseconds since 1970; None where it has none.
      reason: the fixed word of `BadSample`, of the first of the leaves.
      field: the field at fault, or None.
      message: what is wrong, in words.
      key: the record's key; None where it has none, or the source has no keys.
      value: the original bytes, or their beginning; None of a null record. Of a row of a columnar file: JSON.
      value_bytes: how many bytes the value had before it was cut.
      leaves: which of the record's samples are refused, counted from 0, as ranges such as `0,3-5`; None: the record as a
        whole. Behind LEAVES_CHARACTERS_MAX characters it ends with `...`.
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
    leaves: str | None = None

    @property
    def cut(self) -> bool:
        """Whether `value` is only the beginning."""
        return self.value is not None and len(self.value) < self.value_bytes


def letters_of(chunk: Chunk, bad: Sequence[BadSample], bytes_max: int) -> Iterator[DeadLetter]:
    """The letters of the records of a chunk that anything was refused of, one at a time: it may hold many that are large.

    Args:
      chunk: as the source gave it.
      bad: what was refused, ascending by offset and leaf.
      bytes_max: bound on key and value together; what is longer is cut.
    """
    for offset, group in groupby(bad, key=attrgetter("offset")):
        refused = list(group)
        sample, row = refused[0], int(np.searchsorted(chunk.offsets, offset))
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
            _ranges([bad.leaf for bad in refused if bad.leaf is not None]),
        )


def _ranges(leaves: Sequence[int]) -> str | None:
    """Ascending numbers as text."""
    if not leaves:
        return None
    text = ""
    # Neighbours have the same distance from their place in the list.
    for _, run in groupby(enumerate(leaves), key=lambda pair: pair[1] - pair[0]):
        numbers = [leaf for _, leaf in run]
        part = f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]}"
        if len(text) + len(part) >= LEAVES_CHARACTERS_MAX:
            return f"{text},..."
        text = f"{text},{part}" if text else part
    return text


def _value(chunk: Chunk, row: int) -> bytes | None:
    if isinstance(chunk.records, pa.Table):
        (values,) = chunk.records.slice(row, 1).to_pylist()
        return json.dumps(values, default=str).encode()
    return chunk.records[row]
