"""Guesses a first job from a file of samples: which columns are labels, ids, histories, numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet

from streamtrain.errors import ConfigError

__all__ = ["Choices", "write_job"]

_ROWS = 10_000
_BYTES = 16 << 20
_LABEL = re.compile(r"^(label|click|clicked|is_click|conversion|converted|target|y)$", re.IGNORECASE)
_TIME = re.compile(r"(time|timestamp|_ts|^ts)(_ms)?$", re.IGNORECASE)
_HISTORY = re.compile(r"(hist|recent|last|seq|sequence|behaviou?r)", re.IGNORECASE)
# What a name may be in the job, and stand in TOML without quotes.
_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_-]{0,63}$")


@dataclass(frozen=True, slots=True)
class Choices:
    """What the user decided; None leaves it to be guessed.

    Attributes:
      labels: fields to predict.
      event_time: field with milliseconds since 1970.
      kafka: bootstrap servers, to read from Kafka rather than from the file.
      topic: the topic there.
    """

    labels: Sequence[str] | None = None
    event_time: str | None = None
    kafka: str | None = None
    topic: str | None = None


def write_job(sample: Path, choices: Choices) -> str:
    """The text of a commented TOML job that `load_job` accepts.

    Raises:
      ConfigError: the file cannot be read, or has no label to be found.
    """
    table = _read(sample)
    labels = list(choices.labels or [c for c in table.column_names if _LABEL.match(c)])
    for name in (*labels, *([choices.event_time] if choices.event_time else [])):
        if name not in table.column_names:
            raise ConfigError(f"{sample} has no field {name!r}; it has: {', '.join(table.column_names)}")
    if not labels:
        raise ConfigError(
            f"which field of {sample} is to be predicted? Say so with --label; it has: {', '.join(table.column_names)}"
        )
    event_time = choices.event_time or next((c for c in table.column_names if _is_time(c, table[c])), None)
    _check(sample, table, labels, event_time)
    columns = [c for c in table.column_names if c not in labels and c != event_time]
    slots = [_slot(key, c, table[c]) for key, c in zip(_keys(columns), columns, strict=True)]
    name = _safe(sample.name.split(".")[0], "model")
    return "\n".join(
        [*_head(name, sample, choices), *_schema(labels, event_time, slots), _TAIL.format(name=name)]
    )


def _read(sample: Path) -> pa.Table:
    try:
        if sample.suffix == ".parquet":
            file = pyarrow.parquet.ParquetFile(sample)
            batch = next(file.iter_batches(_ROWS), None)
            return file.schema_arrow.empty_table() if batch is None else pa.Table.from_batches([batch])
        with pa.input_stream(str(sample), compression="detect") as stream:
            head = stream.read(_BYTES)
        if len(head) == _BYTES:
            head = head[: head.rfind(b"\n") + 1]
        return pyarrow.json.read_json(
            pa.BufferReader(head), pyarrow.json.ReadOptions(block_size=max(len(head), 1))
        )
    except (OSError, pa.ArrowInvalid) as error:
        raise ConfigError(f"cannot read {sample} as Parquet or JSON lines: {error}") from error


def _check(sample: Path, table: pa.Table, labels: Sequence[str], event_time: str | None) -> None:
    for label in labels:
        kind = table[label].type
        number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        if not number:
            raise ConfigError(f"{sample}: {label!r} holds {kind}; a label is a number from 0 to 1")
        if not _NAME.match(label):
            raise ConfigError(f"{sample}: a label must be named with letters, digits and _; rename {label!r}")
    if event_time is not None:
        kind = table[event_time].type
        if not (pa.types.is_integer(kind) or pa.types.is_timestamp(kind)):
            raise ConfigError(
                f"{sample}: {event_time!r} holds {kind}; an event time is an integer, milliseconds since 1970"
            )


def _safe(text: str, prefix: str) -> str:
    """`text` as a name: other characters become `_`; `prefix` goes before what does not begin with a letter."""
    name = re.sub(r"[^A-Za-z0-9_]", "_", text)[:50]
    return name if _NAME.match(name) else f"{prefix}_{name}".rstrip("_")


def _keys(columns: Sequence[str]) -> list[str]:
    """A distinct slot name for each column, its own where that can be a name."""
    keys = {c: c for c in columns if _NAME.match(c)}
    for column in columns:
        if column not in keys:
            name = stem = _safe(column, "slot")
            number = 1
            while name in keys.values():
                number += 1
                name = f"{stem}_{number}"
            keys[column] = name
    return [keys[c] for c in columns]


def _is_time(name: str, column: pa.ChunkedArray) -> bool:
    if _TIME.search(name) and pa.types.is_timestamp(column.type):
        return True
    if not _TIME.search(name) or not pa.types.is_integer(column.type):
        return False
    low = pc.min(column).as_py()
    return low is not None and 10**12 < low < 10**13


def _slot(key: str, name: str, column: pa.ChunkedArray) -> str:
    """One line of `[schema.slots]`, commented out where the column cannot be a slot."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_integer(kind):
        return _line(key, name)
    if _is_string(kind):
        return _line(key, name, 'type = "string"')
    if pa.types.is_floating(kind):
        return _line(key, name, 'kind = "bucket"', f"boundaries = {_deciles(column)}")
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _list_slot(key, name, column)
    return f"# {json.dumps(name)}: {kind} cannot be a slot as it is"


def _list_slot(key: str, name: str, column: pa.ChunkedArray) -> str:
    inner = column.type.value_type
    if pa.types.is_floating(inner):
        lengths = pc.unique(pc.list_value_length(column).drop_null()).to_pylist()
        if len(lengths) == 1 and lengths[0] > 0:
            return _line(key, name, 'kind = "dense"', f"size = {lengths[0]}")
        return f"# {json.dumps(name)}: lists of floats of different lengths cannot be a slot"
    if not (pa.types.is_integer(inner) or _is_string(inner)):
        return f"# {json.dumps(name)}: {column.type} cannot be a slot as it is"
    typed = ['type = "string"'] if _is_string(inner) else []
    if _HISTORY.search(name):
        line = _line(key, name, 'kind = "sequence"', "length_max = 20", 'pooling = "mean"', *typed)
        return f'{line}  # add shares = "the item\'s slot"'
    return _line(key, name, "many = true", 'pooling = "mean"', *typed)


def _line(key: str, name: str, *settings: str) -> str:
    """A slot with these settings, and with the field's name where that is not the slot's."""
    inside = ", ".join([*([] if key == name else [f"field = {json.dumps(name)}"]), *settings])
    return f"{key} = {{ {inside} }}" if inside else f"{key} = {{}}"


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _deciles(column: pa.ChunkedArray) -> list[float]:
    values = column.drop_null().to_numpy().astype(np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return [0.0]
    return [float(f"{q:.6g}") for q in np.unique(np.quantile(values, np.linspace(0.1, 0.9, 9)).round(9))]


def _head(name: str, sample: Path, choices: Choices) -> list[str]:
    lines = [
        f"# A first job, guessed from {sample.name}. Correct what is wrong; docs/configuration.md explains every key.",
        f'name = "{name}"',
        "seed = 1",
        "",
        "[source]",
    ]
    if choices.kafka is None:
        return [
            *lines,
            'kind = "files"',
            f"paths = [{json.dumps(str(sample))}]  # files and globs, read in order",
            "follow = false  # true: wait for the file to grow",
            "",
        ]
    return [
        *lines,
        'kind = "kafka"',
        f"bootstrap_servers = {json.dumps(choices.kafka)}",
        f"topic = {json.dumps(choices.topic or name)}",
        'start = "earliest"  # for a new model: earliest, latest, or { timestamp_ms = ... }',
        "",
    ]


def _schema(labels: Sequence[str], event_time: str | None, slots: Sequence[str]) -> list[str]:
    quoted = ", ".join(json.dumps(label) for label in labels)
    time = (
        f"event_time = {json.dumps(event_time)}"
        if event_time
        else '# event_time = "..."  # milliseconds; else the record\'s own time'
    )
    return [
        "[schema]",
        f"labels = [{quoted}]  # numbers from 0 to 1",
        time,
        "",
        "[schema.slots]  # leave out what is an outcome: it is not known when you predict",
        *slots,
        "",
    ]


_TAIL = """\
[tables.main]
dim = 16  # floats a feature id
optimizer = {{ kind = "adagrad", learning_rate = 0.05 }}

[model]
kind = "mlp"  # linear, mlp, deepfm, din, or your own as "module:Class"

[training]
batch_size = 64  # smaller learns more from each sample, larger learns faster
linger_ms = 50

[log]
path = "{name}-model"  # the epoch log: keep it on a disk that you trust
epoch_interval_s = 1.0

[store]
url = "memory://"  # or redis://host:6379/0, with maxmemory-policy noeviction

[[exports]]
kind = "deltas"
path = "{name}-exports"  # what a serving process follows
"""
