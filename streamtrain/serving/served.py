"""The state of one model in a follower: tables and dense parameters that change together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from streamtrain.errors import ExportError
from streamtrain.log.record import TableRows
from streamtrain.samples.batch import SampleBatch
from streamtrain.serving.files import ExportedFile, ExportedRows
from streamtrain.serving.locks import PhaseFairLock
from streamtrain.serving.model import ServedModel, ServedTable
from streamtrain.serving.scorer import Scorer
from streamtrain.serving.version import Version
from streamtrain.sparse.hashed import HashedTable
from streamtrain.sparse.reader import SparseReader
from streamtrain.sparse.table import EmbeddingTable

__all__ = ["Served"]

_ROWS_LIMIT = 2_000_000_000
_ROWS_FACTOR = 8


class Served:
    """A version in service. One thread may `apply`, any number may `score` meanwhile; each sees one version, whole.

    Args:
      model: what it is a version of.
      scorer: made for the model.
      base: the base to begin with.
      now_ms: this process's wall clock.

    Attributes:
      model, scorer: as given.
    """

    def __init__(
        self, model: ServedModel, scorer: Scorer, base: ExportedFile, now_ms: Callable[[], int]
    ) -> None:
        self.model, self.scorer = model, scorer
        self._now_ms = now_ms
        self._swap = PhaseFairLock()
        self._tables = {name: _empty_table(name, table, model.seed) for name, table in model.tables.items()}
        self._reader = SparseReader(scorer.layout, self._tables)
        self._params = scorer.params(base.dense)
        for name, rows in base.tables.items():
            self._tables[name].load(_loadable(rows))
            self._tables[name].at(base.lineage.step_next)
        self._version: Version | None = self._version_of(base)
        # A sample without a single field is a sample; scoring it compiles what a first request would wait for.
        self.score(scorer.decode([{}]))

    def _version_of(self, file: ExportedFile) -> Version:
        return Version(file.entry.position, file.lineage, file.entry.exported_at_ms, self._now_ms())

    @property
    def version(self) -> Version | None:
        """What is served; None when applying a delta failed half-way, which leaves nothing that can be served."""
        return self._version

    def show(self) -> None:
        """Notes that the version becomes visible now. Nobody may score yet."""
        assert self._version is not None
        self._version = replace(self._version, visible_at_ms=self._now_ms())

    def rows(self) -> dict[str, int]:
        """By table, how many rows it holds."""
        return {name: len(table) for name, table in self._tables.items()}

    def apply(self, delta: ExportedFile) -> Version:
        """Makes the next version visible, all at once.

        Raises:
          StreamtrainError: the delta does not fit the model. If its rows were touched, `version` is None.
        """
        # Readers wait only while rows are written: not for the disk, nor for the device.
        tables = {name: _loadable(rows) for name, rows in delta.tables.items()}
        params = self.scorer.params(delta.dense)
        with self._swap.write():
            self._version = None
            for name, rows in tables.items():
                self._tables[name].load(rows)
                self._tables[name].at(delta.lineage.step_next)
            self._params = params
            self._version = self._version_of(delta)
            return self._version

    def score(self, batch: SampleBatch) -> tuple[NDArray[np.float32], Version]:
        """Probabilities (`[B, L]` float32), and the version that gave all of them.

        Raises:
          ExportError: see `version`.
        """
        with self._swap.read():
            if self._version is None:
                raise ExportError("the last delta could not be applied whole; a base will be loaded")
            pieces = self.scorer.gather(self._reader, batch)
            params, version = self._params, self._version
        return self.scorer.predict(params, pieces), version


def _empty_table(name: str, table: ServedTable, seed: int) -> EmbeddingTable | HashedTable:
    if table.hashing is not None:
        return HashedTable(name, table.dim, table.hashing, init=table.init, seed=seed)
    # The trainer's `rows_max` may be raised while the model lives, and `model.json` is not written again.
    # Here it bounds address space only, so there is room for that.
    rows_max = min(_ROWS_FACTOR * table.rows_max, _ROWS_LIMIT)
    return EmbeddingTable(
        name,
        table.dim,
        init=table.init,
        seed=seed,
        rows_max=rows_max,
        unadmitted=table.unadmitted,
        decay=table.decay,
    )


def _loadable(rows: ExportedRows) -> TableRows:
    """The rows as a table takes them, copied out of the mapped file."""
    count = len(rows.ids)
    return TableRows(
        ids=rows.ids.copy(),
        weights=rows.vectors(),
        slots=np.empty((count, 0), np.float32),
        counts=np.zeros(count, np.uint32),
        last_steps=np.zeros(count, np.uint32) if rows.last_steps is None else rows.last_steps.copy(),
        tombstones=rows.tombstones.copy(),
    )
