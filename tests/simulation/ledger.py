"""A model that is a ledger: every sample counts its own row, and everything else depends on the order of learning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from streamtrain.log.record import EpochRecord, TableRows
from streamtrain.samples.minibatch import Minibatch
from streamtrain.training.epochs import EpochBuilder
from tests.simulation.loom import running
from tests.simulation.stream import HOT_IDS

__all__ = ["JOB", "TABLES", "Ledger", "LedgerLearner", "Row", "as_rows", "as_table", "poisoned"]

TABLES = ("ledger", "hot")
LAYOUT = SimpleNamespace(pooled=[SimpleNamespace(table=name, name=name) for name in TABLES], sequences=[])
"""What the prefetch reads of a layout: each slot's table."""

JOB: dict[str, Any] = {
    "name": "ledger",
    "seed": 1,
    "schema": {
        "labels": ["click"],
        "slots": {t: {"kind": "sparse", "type": "int", "table": t} for t in TABLES},
    },
    "tables": {t: {"dim": 1, "init": {"kind": "constant", "value": 0.0}} for t in TABLES},
    "model": {"kind": "linear"},
}

Row = tuple[float, int, int]
"""Weight, count, last step."""
Tables = dict[str, dict[int, Row]]

_POISON = 23
_MODULUS = 65_521  # The largest prime below 2^16: every weight is a whole number that float32 holds.


class Ledger:
    """The model's state and its one rule. Whole numbers alone, so equal means equal.

    Attributes:
      tables: by name, the rows by id.
      dense: a running hash of every sample in its minibatch.
    """

    def __init__(self) -> None:
        self.tables: Tables = {name: {} for name in TABLES}
        self.dense = 7
        self._changed: dict[str, dict[int, None]] = {name: {} for name in TABLES}

    def learn(self, samples: Sequence[int], step: int) -> None:
        """One step."""
        for sample in samples:
            self._update("ledger", sample, sample, step)
            self._update("hot", sample % HOT_IDS, sample, step)
        self.dense = (self.dense * 1_000_003 + hash((step, *samples))) % (1 << 61)

    def _update(self, table: str, id_: int, sample: int, step: int) -> None:
        rows = self.tables[table]
        weight, count, _ = rows.get(id_, (0.0, 0, 0))
        weight = float((int(weight) * 31 + sample * 17 + step + 1) % _MODULUS)
        self._changed[table][id_] = None
        if table == "hot" and weight % 6 == 0:
            rows.pop(id_, None)  # Expired.
        else:
            rows[id_] = (weight, count + 1, step)

    def cut(self) -> dict[str, TableRows]:
        """By table, what changed since the last cut."""
        changed, self._changed = self._changed, {name: {} for name in TABLES}
        return {name: as_table(self.tables[name], list(ids)) for name, ids in changed.items()}

    def load(self, record: EpochRecord, *, rows: bool = True) -> None:
        """Applies an epoch or a base."""
        if rows:
            for name, table in record.tables.items():
                for gone in table.tombstones.tolist():
                    self.tables[name].pop(gone, None)
                self.tables[name].update(as_rows(table))
        self.dense = int(record.dense["params/hash"])


def poisoned(samples: Sequence[int]) -> bool:
    """Whether a step on these samples would leave no number behind, so that all of them are quarantined."""
    return any(sample % _POISON == 0 for sample in samples)


def as_table(rows: Mapping[int, Row], ids: Sequence[int]) -> TableRows:
    """The rows of `ids` as arrays; tombstones of those that have none."""
    there = [id_ for id_ in ids if id_ in rows]
    values = [rows[id_] for id_ in there]
    weights = np.array([row[0] for row in values], np.float32).reshape(-1, 1)
    return TableRows(
        np.array(there, np.uint64),
        weights,
        -weights,
        np.array([row[1] for row in values], np.uint32),
        np.array([row[2] for row in values], np.uint32),
        np.array([id_ for id_ in ids if id_ not in rows], np.uint64),
    )


def as_rows(table: TableRows) -> dict[int, Row]:
    """The arrays as rows by id."""
    columns = (table.weights[:, 0].tolist(), table.counts.tolist(), table.last_steps.tolist())
    return dict(zip(table.ids.tolist(), zip(*columns)))


class _Nothing:
    """Answers everything with itself: metrics that nobody reads."""

    def __getattr__(self, name: str) -> _Nothing:
        setattr(self, name, self)  # Asked once a name: metrics are written at every step.
        return self

    def __call__(self, *_: object, **__: object) -> _Nothing:
        return self

    def __enter__(self) -> _Nothing:
        return self

    def __exit__(self, *_: object) -> None:
        pass


NOTHING: Any = _Nothing()


class LedgerLearner:
    """What the trainer steps, with the product's own epoch builder. Has the shape of `training.learner.Learner`."""

    def __init__(self) -> None:
        self.model = Ledger()
        self.dense, self.prequential = SimpleNamespace(compilations=0), NOTHING
        self.sparse: Any = _Nothing()
        self.sparse.needs_history = False  # No table counts what it has not admitted.
        self.sparse.resident = frozenset()
        self.sparse.take_figures = lambda table: ({}, {})
        self.source, self.lost = "", ()
        self._epochs: EpochBuilder | None = None

    @property
    def epochs(self) -> EpochBuilder:
        assert self._epochs is not None, "restore comes first"
        return self._epochs

    def genesis(self, positions: Mapping[str, int]) -> EpochRecord:
        """The record of a model before its first sample."""
        tables, dense = self.model.cut(), self._dense()
        return EpochRecord(0, "", 0, 0, 0, 0, dict(positions), tables, dense, {})

    def restore(
        self, records: Iterable[EpochRecord], *, sequential: bool, rows: bool, expected: Mapping[str, int]
    ) -> EpochRecord:
        """Becomes the model that the records describe. A ledger needs no memory found."""
        self.model = Ledger()
        return self.advance(records, sequential=sequential, rows=rows)

    def advance(self, records: Iterable[EpochRecord], *, sequential: bool, rows: bool) -> EpochRecord:
        """Goes on to the records that follow."""
        last = None
        for last in records:
            self.model.load(last, rows=rows)
        assert last is not None, "a log has at least its genesis"
        self._epochs = EpochBuilder(last, sequential=sequential)
        return replace(last, tables={}, dense={}, metrics={})

    def learn(self, minibatch: Minibatch, ahead: object = None) -> bool:
        """One step, or none where a sample is poison."""
        running().point()
        samples = minibatch.batch.ids["ledger"].values.tolist()
        quarantined = poisoned(samples)
        if samples and not quarantined:
            self.model.learn(samples, self.epochs.step)
        self.epochs.add(minibatch, quarantined=quarantined)
        return not quarantined

    def evict(self, ids: Mapping[str, np.ndarray]) -> None:
        assert not ids, "no table of the simulation has a bound on its memory"

    def insert_pulled(self, rows: Mapping[str, TableRows]) -> None:
        """Takes rows that the store had; a row that is in memory is newer and stays."""
        for name, pulled in rows.items():
            for id_, row in as_rows(pulled).items():
                self.model.tables[name].setdefault(id_, row)

    def cut(self) -> EpochRecord:
        """Everything that changed since the last cut."""
        return self.epochs.cut(self.model.cut(), self._dense(), {}, {"batch_size": "?"})

    def _dense(self) -> dict[str, np.ndarray]:
        return {"params/hash": np.array(self.model.dense, np.int64), "optimizer/x": np.array(1, np.int8)}
