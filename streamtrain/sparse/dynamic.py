"""The dynamic table: one row for each id, made when the id first comes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamtrain.log.record import TableRows
from streamtrain.sparse.settings import TableSettings
from streamtrain.sparse.table import EmbeddingTable
from streamtrain.sparse.unite import United

__all__ = ["DynamicTable"]

NO_ROWS = np.empty(0, np.int32)
NO_COUNTS = np.empty(0, np.uint32)


class DynamicTable:
    """The kind of table that is an index of ids over rows of their own; see `TableKind`.

    Attributes:
      rows: the rows.
    """

    def __init__(self, name: str, settings: TableSettings, seed: int) -> None:
        """Args: name: the table's; settings: of it; seed: the model's. Raises: ConfigError."""
        self.name, self.dim = name, settings.dim
        self.rows = EmbeddingTable(
            name,
            settings.dim,
            init=settings.init,
            seed=seed,
            rows_max=settings.rows_max,
            optimizer=settings.optimizer,
        )
        self._step_rows, self._occurrences = NO_ROWS, NO_COUNTS

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def memory_bytes(self) -> int:
        return self.rows.memory_bytes

    def begin(self, united: United, step: int, vectors: NDArray[np.float32]) -> None:
        self._step_rows = self.rows.find_or_insert(united.ids)
        self._occurrences = united.occurrences
        self.rows.gather(self._step_rows, vectors)

    def learn(self, gradients: NDArray[np.float32], step: int) -> bool:
        return self.rows.learn(self._step_rows, gradients, self._occurrences, step)

    def keep(self) -> None:
        self.rows.keep_learned(self._step_rows)

    def undo(self) -> None:
        """Rows that `begin` inserted stay, at their initial state, which is what they would start as again."""
        self.rows.undo_learned(self._step_rows)

    def discard(self) -> None:
        """As `undo`: rows that were inserted stay."""

    def lookup(self, ids: NDArray[np.uint64]) -> NDArray[np.float32]:
        return self.rows.lookup(ids)

    def rehearse(self) -> None:
        self.rows.rehearse()

    def cut(self) -> TableRows:
        return self.rows.cut()

    def load(self, values: TableRows, *, dirty: bool = False) -> None:
        self.rows.load(values, dirty=dirty)

    def insert_missing(self, values: TableRows) -> int:
        return self.rows.insert_missing(values)

    def remove(self, ids: NDArray[np.uint64]) -> int:
        return self.rows.remove(ids)

    def contains(self, ids: NDArray[np.uint64]) -> NDArray[np.bool_]:
        return self.rows.contains(ids)

    def export(self) -> TableRows:
        return self.rows.export()
