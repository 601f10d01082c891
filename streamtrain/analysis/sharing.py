"""Tables whose ids share rows: what an id is made of there, and how many ids cannot be told apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from streamtrain.log.record import TableRows
from streamtrain.sparse.tables import AnyTable, Hashing

__all__ = ["collided_share", "combined", "hashing_of", "row_ids"]

_TABLE: TypeAdapter[AnyTable] = TypeAdapter(AnyTable)


def hashing_of(job: Mapping[str, Any], table: str) -> Hashing | None:
    """How a table of a job (as `model.json` has it) shares its rows; None where each id has its own."""
    settings = job.get("tables", {}).get(table)
    return None if settings is None else _TABLE.validate_python(dict(settings)).hashing


def row_ids(
    job: Mapping[str, Any], table: str, hashing: Hashing, ids: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """The rows that ids (`[N]` uint64) are made of, `[N, parts]` uint64, by the law of docs/row-ids.md."""
    # numba is loaded with it, which nothing else here needs.
    from streamtrain.sparse.hashed_ids import RowIds

    return RowIds(hashing, int(job.get("seed", 0)), table).of(ids).reshape(len(ids), hashing.parts)


def combined(hashing: Hashing, rows: TableRows) -> NDArray[np.float32]:
    """The vector, `[D]` float32, that the rows of one id make, part after part; in the trainer's order, so to the bit."""
    if hashing.combine == "concat":
        return rows.weights.reshape(-1)
    vector = rows.weights[0].copy()
    for row in rows.weights[1:]:
        vector = vector + row if hashing.combine == "add" else vector * row
    return vector


def collided_share(rows: NDArray[np.uint64]) -> float:
    """The share of ids that have all their rows in common with another one: counted, not estimated.

    Args:
      rows: `[N, parts]` uint64, the rows of N distinct ids; 0 where N is.
    """
    if not len(rows):
        return 0.0
    _, counts = np.unique(rows, axis=0, return_counts=True)
    return float(counts[counts > 1].sum()) / len(rows)
