"""What every kind of table leaves to its rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamtrain.log.record import TableRows
from streamtrain.sparse.table import EmbeddingTable

__all__ = ["OverRows"]


class OverRows:
    """The part of a `TableKind` that is the same whatever ids stand for: rows are cut, loaded and asked for by their own ids.

    Attributes:
      name: the table's name.
      dim: D, floats a vector.
      rows: the rows.
    """

    def __init__(self, rows: EmbeddingTable, dim: int) -> None:
        self.name, self.dim, self.rows = rows.name, dim, rows

    def __len__(self) -> int:
        return len(self.rows)

    def cut(self) -> TableRows:
        return self.rows.cut()

    def expect(self, rows: int) -> None:
        self.rows.expect(rows)

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
