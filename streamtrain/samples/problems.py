"""Collects what is wrong with the rows of a table: per row the first problem, in the schema's order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamtrain.errors import BadSample

__all__ = ["BadLeaf", "Fault", "Problems"]


@dataclass(frozen=True, slots=True)
class Fault:
    """What a codec found wrong with one node of a record, whose other values it kept.

    Attributes:
      record: the record's index.
      depth: the node's level, 0 is the root's; the number of levels above the samples: a sample.
      node: which of the record's nodes of that level, from 0.
      error: what is wrong.
    """

    record: int
    depth: int
    node: int
    error: BadSample


@dataclass(frozen=True, slots=True)
class BadLeaf:
    """Leaf `leaf` of record `record` cannot become a sample; None: the record as a whole."""

    record: int
    leaf: int | None
    error: BadSample


class Problems:
    """The bad rows of a table of `size` rows."""

    def __init__(self, size: int) -> None:
        self.bad = np.zeros(size, np.bool_)
        self._first: dict[int, BadSample] = {}

    def flag(
        self, rows: NDArray[np.int64], reason: str, field: str | None, detail: str | Callable[[int], str]
    ) -> None:
        """Rows `rows`, distinct, are bad; those already bad keep their first problem."""
        if len(rows) == 0:
            return
        for row in rows[~self.bad[rows]].tolist():
            text = detail if isinstance(detail, str) else detail(row)
            self._first[row] = BadSample(reason, text, field=field)
        self.bad[rows] = True

    def __bool__(self) -> bool:
        return bool(self._first)

    def __getitem__(self, row: int) -> BadSample:
        """What is wrong with a bad row."""
        return self._first[row]

    def rows(self) -> list[int]:
        """The bad rows, ascending."""
        return sorted(self._first)
