"""Collects what is wrong with the rows of a table: per row the first problem, in the schema's order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["BadRow", "Problems"]


@dataclass(frozen=True, slots=True)
class BadRow:
    """Row `row` of a table cannot become a sample; the rest is as in `BadSample`."""

    row: int
    reason: str
    field: str
    detail: str


class Problems:
    """The bad rows of a table of `size` rows."""

    def __init__(self, size: int) -> None:
        self.bad = np.zeros(size, np.bool_)
        self._rows: list[BadRow] = []

    def flag(
        self, rows: NDArray[np.int64], reason: str, field: str, detail: str | Callable[[int], str]
    ) -> None:
        """Rows `rows`, distinct, are bad; those already bad keep their first problem."""
        if len(rows) == 0:
            return
        for row in rows[~self.bad[rows]].tolist():
            self._rows.append(BadRow(row, reason, field, detail if isinstance(detail, str) else detail(row)))
        self.bad[rows] = True

    def __bool__(self) -> bool:
        return bool(self._rows)

    def rows(self) -> list[BadRow]:
        """The bad rows, ascending."""
        return sorted(self._rows, key=lambda bad: bad.row)
