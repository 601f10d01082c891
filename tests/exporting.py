"""A small model and a log with its history, for the tests of exports and serving. Everything in it is real."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from exporters.deltas import DeltaExporter, DeltaSettings
from streamtrain.dense.model import parse_settings
from streamtrain.dense.net import DenseNet
from streamtrain.dense.optimizers import DenseAdam
from streamtrain.layout import Layout
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.record import EpochRecord, TableRows
from streamtrain.samples.schema import Schema
from streamtrain.serving import Follower

JOB: dict[str, Any] = {
    "name": "small",
    "seed": 7,
    "schema": {
        "labels": ["click"],
        "slots": {
            "user": {"kind": "sparse", "type": "int", "table": "users"},
            "item": {"kind": "sparse", "type": "string", "many": True, "pooling": "mean", "table": "items"},
            "price": {"kind": "dense", "size": 2},
        },
    },
    "tables": {
        "users": {"dim": 1, "init": {"kind": "constant", "value": 0.0}, "optimizer": {"kind": "adagrad"}},
        "items": {"dim": 1, "init": {"kind": "normal", "std": 0.1}, "optimizer": {"kind": "adam"}},
    },
    "model": {"kind": "linear"},
    "training": {"batch_size": 8},
}
TABLES = tuple(JOB["tables"])
SLOTS = {"users": 1, "items": 3}


@cache
def dense_state() -> Mapping[str, np.ndarray]:
    """The dense state of an untrained model: parameters and optimizer."""
    schema = Schema.model_validate(JOB["schema"])
    layout = Layout.of(schema, {name: table["dim"] for name, table in JOB["tables"].items()})
    return DenseNet(layout, parse_settings(JOB["model"]), DenseAdam(), seed=7, batch_size=8).state()


def rows(ids: Sequence[int], weight: float, slots: int, tombstones: Sequence[int] = ()) -> TableRows:
    """Rows of dim 1 that all have one weight."""
    count = len(ids)
    return TableRows(
        np.array(ids, np.uint64),
        np.full((count, 1), weight, np.float32),
        np.full((count, slots), 9, np.float32),
        np.ones(count, np.uint32),
        np.ones(count, np.uint32),
        np.array(tombstones, np.uint64),
    )


class History:
    """A log that is written record by record.

    Attributes:
      log: the log.
      oracle: by epoch, by table, by id: the weight that a follower at that epoch must have.
    """

    def __init__(self, path: Path, job: Mapping[str, Any] = JOB) -> None:
        self.log = EpochLog.create(path, str(job["name"]), job)
        self.oracle: list[dict[str, dict[int, float]]] = []
        self._previous = ""

    def append(
        self,
        changes: Mapping[str, Mapping[int, float | None]] | None = None,
        bias: float = 0.0,
        **fields: Any,
    ) -> EpochRecord:
        """Commits an epoch.

        Args:
          changes: by table, by id: its new weight, or None where it is removed.
          bias: what every dense parameter becomes.
          fields: other fields of the record.
        """
        epoch = len(self.oracle)
        after = {table: dict(self.oracle[-1][table]) if self.oracle else {} for table in TABLES}
        tables = {}
        for table, changed in (changes or {}).items():
            kept = {id: weight for id, weight in changed.items() if weight is not None}
            gone = [id for id, weight in changed.items() if weight is None]
            parts = rows(list(kept), 0.0, SLOTS[table], gone)
            tables[table] = dataclasses.replace(
                parts, weights=np.array(list(kept.values()), np.float32).reshape(-1, 1)
            )
            after[table] |= kept
            for id in gone:
                after[table].pop(id, None)
        samples = (
            {"samples": 10, "record_time_ms": (1_000 * epoch - 500, 1_000 * epoch)}
            if epoch
            else {"samples": 0}
        )
        record = EpochRecord(
            **{
                "epoch": epoch,
                "previous": self._previous,
                "step_first": epoch,
                "step_next": epoch + 1,
                "samples_total": 10 * epoch,
                "positions": {"topic:0": 10 * epoch},
                "tables": tables,
                "dense": {name: np.full_like(array, bias) for name, array in dense_state().items()},
                "metrics": {"auc": np.arange(3.0)},
                "committed_at_ms": 1_000 * epoch,
                "event_time_ms": (epoch, epoch + 1) if epoch else None,
                "watermark_ms": epoch,
                **samples,
                **fields,
            }
        )
        self._previous = self.log.append(record)
        self.oracle.append(after)
        return record


def make_exporter(log: EpochLog, path: Path, **settings: Any) -> DeltaExporter:
    return DeltaExporter(DeltaSettings(path=str(path), **settings), log.model)


def held(follower: Follower) -> dict[str, dict[int, float]]:
    """What a follower holds: by table, by id, its weight."""
    served = follower._served
    assert served is not None
    tables = {name: table.export() for name, table in served._tables.items()}
    return {
        name: {int(i): float(w) for i, w in zip(values.ids, values.weights[:, 0], strict=True)}
        for name, values in tables.items()
    }
