"""Between an `EpochRecord` and the document and tensors of its file. `docs/epoch-log.md` is the specification."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np

from streamtrain.log import container
from streamtrain.log.record import EpochRecord, FilterRows, SpanTable, TableRows

__all__ = ["FORMAT", "Kind", "content_digest", "decode", "document", "tensors", "unknown"]

FORMAT = 1
Kind = Literal["epoch", "base"]

# Of each table: the field of TableRows, its dtype and number of dimensions.
_COLUMNS = {
    "ids": (np.uint64, 1),
    "weights": (np.float32, 2),
    "slots": (np.float32, 2),
    "counts": (np.uint32, 1),
    "last_steps": (np.uint32, 1),
    "tombstones": (np.uint64, 1),
}
# Of each admission filter: as above.
_FILTER_COLUMNS = {"ids": (np.uint64, 1), "values": (np.uint8, 2), "tombstones": (np.uint64, 1)}
_PLAIN = (
    "epoch", "previous", "step_first", "step_next", "samples", "samples_total", "bad_samples", "watermark_ms",
    "committed_at_ms", "writer",
)  # fmt: skip
_COUNTS = (
    "epoch", "step_first", "samples", "samples_total", "bad_samples", "quarantined_minibatches",
    "quarantined_samples",
)  # fmt: skip
# What few records have; a document does not name one that is as it is by default.
_RARE: dict[str, Any] = {
    "leaves": {},
    "quarantined_minibatches": 0,
    "quarantined_samples": 0,
    "restores": None,
    "undone_samples": 0,
}
_GROUPS = ("tables", "filters", "rules", "dense", "metrics")
_SINGLE = ("spans", "quarantined", "leaves")
_KEYS = frozenset(
    [
        *_PLAIN,
        *_RARE,
        "format",
        "kind",
        "model_id",
        "event_time_ms",
        "record_time_ms",
        "positions",
        "partitions",
        "notes",
    ]
)


def document(record: EpochRecord, kind: Kind, model_id: str) -> dict[str, Any]:
    """The JSON document of a record: everything that is not a tensor."""
    return {
        "format": FORMAT,
        "kind": kind,
        "model_id": model_id,
        **{name: getattr(record, name) for name in _PLAIN},
        **{name: value for name, usual in _RARE.items() if (value := getattr(record, name)) != usual},
        "event_time_ms": record.event_time_ms,
        "record_time_ms": record.record_time_ms,
        "positions": dict(record.positions),
        "partitions": record.spans.partitions,
        "notes": dict(record.notes),
    }


def tensors(record: EpochRecord) -> dict[str, np.ndarray]:
    """The tensors of a record by their names in the file.

    Raises:
      ValueError: the record contradicts itself; see `_check`.
    """
    _check(record)
    named: dict[str, np.ndarray] = {"spans": record.spans.spans}
    if len(record.spans.quarantined):
        named["quarantined"] = record.spans.quarantined
    if record.spans.leaves.any():
        named["leaves"] = record.spans.leaves
    for table, rows in record.tables.items():
        named |= {f"tables/{table}/{column}": getattr(rows, column) for column in _COLUMNS}
    for table, changed in record.filters.items():
        named |= {f"filters/{table}/{column}": getattr(changed, column) for column in _FILTER_COLUMNS}
    named |= {f"rules/{name}": np.asarray(array) for name, array in record.rules.items()}
    named |= {f"dense/{name}": np.asarray(array) for name, array in record.dense.items()}
    named |= {f"metrics/{name}": np.asarray(array) for name, array in record.metrics.items()}
    return named


def unknown(document: Mapping[str, Any], tensors: Iterable[str]) -> str:
    """What in a file this version has no meaning for, in words; "" where there is nothing of the kind.

    Whatever a record says is a part of the model, so what is not understood is never passed over: a reader that did so with
    `leaves` would learn samples twice.
    """
    if (found := document.get("format")) != FORMAT:
        return f"its format is {found!r}, this version of streamtrain reads {FORMAT}"
    strange = sorted(document.keys() - _KEYS)
    strange += sorted({name for name in tensors if name.partition("/")[0] not in (*_GROUPS, *_SINGLE)})
    return f"it has {', '.join(map(repr, strange))}, which this version does not know" if strange else ""


def decode(document: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> EpochRecord:
    """The record that a file holds, of which nothing is `unknown`; its arrays are those passed, uncopied.

    Raises:
      ValueError, KeyError, TypeError: the file is not a record, or contradicts itself.
    """
    groups: dict[str, dict[str, np.ndarray]] = {group: {} for group in _GROUPS}
    for name, tensor in tensors.items():
        group, _, rest = name.partition("/")
        if name not in _SINGLE:
            groups[group][rest] = tensor
    record = EpochRecord(
        **{name: document[name] for name in _PLAIN},
        **{name: document.get(name, usual) for name, usual in _RARE.items()},
        event_time_ms=_pair(document["event_time_ms"]),
        record_time_ms=_pair(document["record_time_ms"]),
        positions=document["positions"],
        notes=document["notes"],
        spans=SpanTable(
            tuple(document["partitions"]),
            tensors["spans"],
            tensors.get("quarantined", np.empty(0, np.int64)),
            tensors.get("leaves", np.empty((0, 2), np.int64)),
        ),
        tables={table: TableRows(**columns) for table, columns in _by_table(groups["tables"]).items()},
        filters={table: FilterRows(**columns) for table, columns in _by_table(groups["filters"]).items()},
        rules=groups["rules"],
        dense=groups["dense"],
        metrics=groups["metrics"],
    )
    _check(record)
    return record


def content_digest(record: EpochRecord) -> str:
    """SHA-256 of what the record says about learning: equal for equal learning, whoever did it and whenever.

    It is the digest that the record's file would have as an epoch with `model_id`, `previous` and `writer` empty,
    `committed_at_ms` 0 and no notes. Those name the clock and the writer (`previous`, by the chain, all the clocks
    before), so a replay of the same spans differs in them and in nothing else.
    """
    bare = dataclasses.replace(record, previous="", writer="", committed_at_ms=0, notes={})
    return container.write(document(bare, "epoch", ""), tensors(bare))


def _by_table(columns: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    tables: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in columns.items():
        table, _, column = name.rpartition("/")
        tables.setdefault(table, {})[column] = tensor
    return dict(sorted(tables.items()))


def _pair(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    first, last = value
    return first, last


def _check(record: EpochRecord) -> None:
    """Raises ValueError where the parts of a record cannot belong together. Reads no row: cheap at any size."""
    for name in _COUNTS:
        if type(value := getattr(record, name)) is not int or value < 0:
            raise ValueError(f"{name} is {value!r}, not a whole number from 0 on")
    if record.step_next < record.step_first:
        raise ValueError(f"steps {record.step_first} to {record.step_next} run backwards")
    if record.samples > record.samples_total:
        raise ValueError(f"{record.samples} samples in it are more than the {record.samples_total} in all")
    spans = record.spans.spans
    if spans.dtype != np.int64 or spans.ndim != 2 or spans.shape[1] != 5:
        raise ValueError(f"spans are {spans.dtype}{list(spans.shape)}, not int64[n, 5]")
    if len(spans) and not (spans[:, 1].min() >= 0 and spans[:, 1].max() < len(record.spans.partitions)):
        raise ValueError("a span names a partition that the record does not list")
    quarantined = record.spans.quarantined
    if quarantined.dtype != np.int64 or quarantined.ndim != 1:
        raise ValueError(f"quarantined is {quarantined.dtype}{list(quarantined.shape)}, not int64[q]")
    if len(spans) and len(quarantined) != record.quarantined_minibatches:
        raise ValueError(
            f"it lists {len(quarantined)} quarantined steps and counts {record.quarantined_minibatches}"
        )
    leaves = record.spans.leaves
    if (
        leaves.dtype != np.int64
        or leaves.ndim != 2
        or leaves.shape[1] != 2
        or len(leaves) not in (0, len(spans))
    ):
        raise ValueError(f"leaves are {leaves.dtype}{list(leaves.shape)}, not int64[{len(spans)}, 2]")
    if len(leaves) and leaves.min() < 0:
        raise ValueError("a span begins or ends at a leaf below 0")
    for partition, count in record.leaves.items():
        if partition not in record.positions or type(count) is not int or count < 1:
            raise ValueError(f"it says that {count!r} leaves of {partition} are learned, which cannot be")
    if record.restores is not None and not (
        type(record.restores) is int and 0 <= record.restores < record.epoch
    ):
        raise ValueError(f"it restores {record.restores!r}, which is no epoch before it")
    for table, rows in record.tables.items():
        _check_columns("tables", table, rows, _COLUMNS)
    for table, changed in record.filters.items():
        _check_columns("filters", table, changed, _FILTER_COLUMNS)


def _check_columns(
    group: str, table: str, rows: TableRows | FilterRows, columns: Mapping[str, tuple[type, int]]
) -> None:
    if not table:
        raise ValueError("a table has no name")
    for column, (dtype, dimensions) in columns.items():
        array = getattr(rows, column)
        if array.dtype != dtype or array.ndim != dimensions:
            raise ValueError(f"{group}/{table}/{column} is {array.dtype} of {array.ndim} dimensions")
        if column != "tombstones" and len(array) != len(rows.ids):
            raise ValueError(f"{group}/{table}/{column} has {len(array)} rows, ids has {len(rows.ids)}")
