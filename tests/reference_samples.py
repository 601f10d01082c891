"""Slow, obvious oracles of `streamtrain.samples`: one sample at a time, Python values only."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash

from streamtrain.samples.schema import BucketSlot, CrossSlot, DenseSlot, Schema, SequenceSlot

MASK = 2**64 - 1


@dataclass
class Sample:
    """What one record means; `problems` are all (reason, field) pairs that are wrong with it."""

    ids: dict[str, list[int]] = field(default_factory=dict)
    weights_of: dict[str, list[float]] = field(default_factory=dict)
    dense: list[float] = field(default_factory=list)
    labels: list[float] = field(default_factory=list)
    weight: float = 1.0
    event_time_ms: int = 0
    problems: set[tuple[str, str]] = field(default_factory=set)


def feature_id(namespace: str, value: int | str) -> int:
    """The specification in docs/feature-ids.md, spelt out."""
    key = xxhash.xxh64(namespace.encode("utf-8"), seed=0).intdigest()
    if isinstance(value, str):
        return xxhash.xxh64(value.encode("utf-8"), seed=key).intdigest()
    data = (value & MASK).to_bytes(8, "little")
    return xxhash.xxh64(data, seed=key ^ 0x9E3779B97F4A7C15).intdigest()


def cross_id(namespace: str, ids: tuple[int, ...]) -> int:
    key = xxhash.xxh64(namespace.encode("utf-8"), seed=0).intdigest()
    return xxhash.xxh64(b"".join(i.to_bytes(8, "little") for i in ids), seed=key).intdigest()


def read_sample(schema: Schema, record: Mapping[str, Any], time_ms: int) -> Sample:
    """The sample of a record as `json.loads` gives it."""
    sample = Sample()
    for name in schema.labels:
        value = _number(sample, record, name, 0.0)
        if record.get(name) is None:
            sample.problems.add(("missing", name))
        if not 0 <= value <= 1:
            sample.problems.add(("label", name))
        sample.labels.append(value)
    if schema.weight is not None:
        sample.weight = _number(sample, record, schema.weight, 1.0)
        if sample.weight < 0:
            sample.problems.add(("range", schema.weight))
    sample.event_time_ms = time_ms
    if schema.event_time is not None and record.get(schema.event_time) is not None:
        sample.event_time_ms = _one(sample, record[schema.event_time], schema.event_time, "int")
        if not 0 <= sample.event_time_ms < 253402300800000:
            sample.problems.add(("range", schema.event_time))
        if 0 <= time_ms < sample.event_time_ms - 1000 * schema.event_time_ahead_max_s:
            sample.problems.add(("range", schema.event_time))
    for name, slot in schema.slots.items():
        _slot(sample, schema, record, name, slot)
    return sample


def _slot(sample: Sample, schema: Schema, record: Mapping[str, Any], name: str, slot: Any) -> None:
    if isinstance(slot, CrossSlot):
        parts = [sample.ids[part] for part in slot.of]
        if math.prod(len(part) for part in parts) > slot.combinations_max:
            sample.problems.add(("too_large", name))
            sample.ids[name] = []
            return
        sample.ids[name] = [cross_id(name, combination) for combination in itertools.product(*parts)]
        return
    source = slot.field or name
    if isinstance(slot, DenseSlot):
        if slot.size == 1:
            sample.dense.append(_number(sample, record, source, 0.0))
            return
        values = _list(sample, record, source, "number")
        if record.get(source) is not None and len(values) != slot.size:
            sample.problems.add(("length", source))
        sample.dense.extend(values or [0.0] * slot.size)
    elif isinstance(slot, BucketSlot):
        value = record.get(source)
        if value is None:
            sample.ids[name] = []
        else:
            number = _one(sample, value, source, "number")
            if not math.isfinite(number):
                sample.problems.add(("non_finite", source))
            bucket = sum(1 for boundary in slot.boundaries if boundary <= number)
            sample.ids[name] = [feature_id(name, bucket)]
    else:
        many = isinstance(slot, SequenceSlot) or slot.many
        if many:
            values = _list(sample, record, source, slot.type)
        else:
            values = [] if record.get(source) is None else [_one(sample, record[source], source, slot.type)]
        if isinstance(slot, SequenceSlot):
            values = values[-slot.length_max :]
        elif slot.weights is not None:
            weights = _list(sample, record, slot.weights, "number")
            if len(weights) != len(values):
                sample.problems.add(("length", slot.weights))
            sample.weights_of[name] = weights
        sample.ids[name] = [feature_id(schema.namespace(name), value) for value in values]


def _list(sample: Sample, record: Mapping[str, Any], name: str, kind: str) -> list[Any]:
    values = record.get(name)
    if values is None:
        return []
    if not isinstance(values, list):
        sample.problems.add(("type", name))
        return []
    if any(value is None for value in values):
        sample.problems.add(("missing", name))
    found = [_one(sample, value, name, kind) for value in values if value is not None]
    return [_float32(sample, value, name) for value in found] if kind == "number" else found


def _number(sample: Sample, record: Mapping[str, Any], name: str, default: float) -> float:
    value = record.get(name)
    return default if value is None else _float32(sample, _one(sample, value, name, "number"), name)


def _float32(sample: Sample, value: float, name: str) -> float:
    with np.errstate(over="ignore"):
        narrow = float(np.float32(value))
    if not math.isfinite(narrow):
        sample.problems.add(("non_finite", name))
        return 0.0
    return narrow


def _one(sample: Sample, value: Any, name: str, kind: str) -> Any:
    good = {
        "string": isinstance(value, str),
        "number": isinstance(value, (int, float)) and not isinstance(value, bool),
        "int": isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63,
    }[kind]
    if good:
        return float(value) if kind == "number" else value
    sample.problems.add(("type", name))
    return {"string": "", "number": 0.0, "int": 0}[kind]
