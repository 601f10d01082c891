"""Slow, obvious oracles of the log, and records to feed it with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.record import EpochRecord, SpanTable, TableRows

DIM, SLOTS = 3, 2

Rows = dict[int, tuple[bytes, bytes, int, int]]


def table_rows(
    ids: Sequence[int], tombstones: Sequence[int] = (), seed: int = 0, dim: int = DIM, slots: int = SLOTS
) -> TableRows:
    """Rows whose every value depends on (id, seed), so that a mixed-up row shows."""
    numbers = np.array(ids, np.uint64)
    base = ((numbers % np.uint64(1009)) + np.uint64(seed * 2048)).astype(np.float32)[:, None]
    return TableRows(
        numbers,
        (base + np.arange(dim) / 8).astype(np.float32),
        (-base - np.arange(slots) / 8).astype(np.float32),
        (numbers % np.uint64(97)).astype(np.uint32) + np.uint32(seed),
        np.full(len(numbers), seed, np.uint32),
        np.array(tombstones, np.uint64),
    )


def epoch_record(
    epoch: int,
    previous: str = "",
    tables: Mapping[str, TableRows] | None = None,
    samples: int = 10,
    **changes: Any,
) -> EpochRecord:
    """Epoch `epoch` of a stream of one partition, `samples` samples in each epoch after the genesis."""
    learned = 0 if epoch == 0 else samples
    first = max(epoch - 1, 0)
    spans = (
        np.array([[first, 0, first * samples, epoch * samples, samples]], np.int64)
        if epoch
        else np.empty((0, 5), np.int64)
    )
    record = EpochRecord(
        epoch=epoch,
        previous=previous,
        step_first=first,
        step_next=epoch,
        samples=learned,
        samples_total=epoch * samples,
        positions={"clicks:0": epoch * samples},
        tables={"user": table_rows([1, 2, epoch + 10], seed=epoch)} if tables is None else tables,
        dense={"mlp/kernel": np.full((2, 3), epoch, np.float32), "adam/count": np.array(epoch, np.int32)},
        metrics={"auc": np.arange(4, dtype=np.float64) + epoch},
        spans=SpanTable(("clicks:0",), spans),
        event_time_ms=(1000 * epoch, 1000 * epoch + 999) if epoch else None,
        watermark_ms=1000 * epoch + 999 if epoch else None,
        committed_at_ms=1_700_000_000_000 + epoch,
        writer="test:1",
    )
    return replace(record, **changes)


def append_epochs(log: EpochLog, upto: int, **changes: Any) -> str:
    """Appends epochs after the head, up to and with `upto`; returns the last digest."""
    head = log.head()
    previous = "" if head is None else log.digest(head)
    for epoch in range(0 if head is None else head + 1, upto + 1):
        previous = log.append(epoch_record(epoch, previous, **changes))
    return previous


def as_dict(rows: TableRows) -> Rows:
    """A table as a dict from id to its row's bytes and metadata."""
    return {
        int(id_): (
            rows.weights[at].tobytes(),
            rows.slots[at].tobytes(),
            int(rows.counts[at]),
            int(rows.last_steps[at]),
        )
        for at, id_ in enumerate(rows.ids)
    }


def fold_dicts(parts: Iterable[TableRows]) -> Rows:
    """The table after applying `parts` in order: the oracle of folding."""
    table: Rows = {}
    for part in parts:
        table |= as_dict(part)
        for id_ in part.tombstones:
            table.pop(int(id_), None)
    return table


def assert_same_record(left: EpochRecord, right: EpochRecord) -> None:
    """Equal in every field and every bit."""
    for name in EpochRecord.__slots__:
        if name not in ("tables", "dense", "metrics", "spans"):
            assert getattr(left, name) == getattr(right, name), name
    assert left.spans.partitions == right.spans.partitions
    assert_same_array(left.spans.spans, right.spans.spans)
    assert left.tables.keys() == right.tables.keys()
    for name, rows in left.tables.items():
        for column in TableRows.__slots__:
            assert_same_array(getattr(rows, column), getattr(right.tables[name], column))
    for group in ("dense", "metrics"):
        ours, theirs = getattr(left, group), getattr(right, group)
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert_same_array(ours[name], theirs[name])


def assert_same_array(left: np.ndarray, right: np.ndarray) -> None:
    assert left.dtype == right.dtype and left.shape == right.shape
    assert left.tobytes() == right.tobytes()
