"""Rows of one embedding table, carried over to other settings of the table."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from streamtrain.log.record import TableRows
from streamtrain.sparse.decay import RowDecay
from streamtrain.sparse.init import Initializer
from streamtrain.sparse.lifecycle_settings import Decay
from streamtrain.sparse.optimizers import row_optimizer, slots_of, state_of, statistics_of
from streamtrain.sparse.part_init import PartInitializer
from streamtrain.sparse.settings import AnyOptimizer, TableSettings
from streamtrain.sparse.tables import AnyTable

__all__ = ["carried_over", "keeps_rows"]

_CHUNK_ROWS = 1 << 16


def keeps_rows(before: AnyTable, after: AnyTable, same_seed: bool) -> bool:
    """Whether rows of a table with settings `before` mean the same with settings `after`.

    Not where the table's kind or its hashing differ, of which the seed is a part: then the same id stands for other rows. Nor
    where rows are parts that are set side by side and their width differs: then each column of a vector stands for another.
    """
    if before.kind != after.kind or before.hashing != after.hashing:
        return False
    if before.hashing is None:
        return True
    return same_seed and (before.hashing.combine != "concat" or before.dim == after.dim)


def carried_over(
    name: str, rows: TableRows, before: AnyTable, after: AnyTable, seed: int, step: int
) -> TableRows:
    """The rows with the weights and optimizer state that the new settings have room for.

    Weights that are new start as those of a new row do, by hash of (seed, table, id); those beyond the new dim are cut.
    Optimizer state stays with its weight where the optimizer's kind is the same, whatever its rates, and starts anew
    where it is another. Counts and last steps stay, but in a table that decays, or did, rows are what they have become by
    `step`, and count from there: neither is the past undone, nor is it done again by another rule.

    Args:
      name: the table's.
      rows: `[R]` of them, without tombstones.
      before, after: its settings; `keeps_rows` of them is true.
      seed: the migrated model's.
      step: the last one that the rows have seen.
    """
    if _makeup(before) == _makeup(after):
        return rows
    if _decay(before) is not None or _decay(after) is not None:
        rows = _settled(rows, before, step)
    dim, slots = after.row_dim, slots_of(after.optimizer, after.row_dim)
    weights, state = np.empty((len(rows.ids), dim), np.float32), np.empty((len(rows.ids), slots), np.float32)
    initializer = (
        Initializer(after.init, seed, name)
        if after.hashing is None
        else PartInitializer(after.init, seed, name, after.hashing)
    )
    for start in range(0, len(rows.ids), _CHUNK_ROWS):
        part = slice(start, start + _CHUNK_ROWS)
        words = _words(initializer, after, rows.ids[part], rows.weights[part])
        if before.optimizer.kind == after.optimizer.kind:
            for old, new in _moves(after.optimizer, before.row_dim, dim):
                words[:, dim:][:, new] = rows.slots[part][:, old]
        weights[part], state[part] = words[:, :dim], words[:, dim:]
    return TableRows(rows.ids, weights, state, rows.counts, rows.last_steps)


def _makeup(table: AnyTable) -> tuple[int, str, Decay | None]:
    """What the numbers in a row depend on."""
    return table.row_dim, table.optimizer.kind, _decay(table)


def _decay(table: AnyTable) -> Decay | None:
    return table.decay if isinstance(table, TableSettings) else None


def _settled(rows: TableRows, before: AnyTable, step: int) -> TableRows:
    """Copies of rows as they are at `step`, as if they had been updated in it."""
    weights, slots = rows.weights.copy(), rows.slots.copy()
    if (decay := _decay(before)) is not None:
        statistics = statistics_of(before.optimizer, before.row_dim)
        RowDecay(decay, statistics).fade_columns(weights, slots, rows.last_steps, step)
    return TableRows(rows.ids, weights, slots, rows.counts, np.full_like(rows.last_steps, step & 0xFFFFFFFF))


def _words(
    initializer: Initializer, after: AnyTable, ids: NDArray[np.uint64], weights: NDArray[np.float32]
) -> NDArray[np.float32]:
    """`[n, D + K]` rows: the weights that there were, the rest as it starts."""
    dim = after.row_dim
    words = np.empty((len(ids), dim + slots_of(after.optimizer, dim)), np.float32)
    rows, every = np.arange(len(ids), dtype=np.int32), np.ones(len(ids), np.bool_)
    initializer.fill(words, dim, np.ascontiguousarray(ids), rows, every)
    kept = min(dim, weights.shape[1])
    words[:, :kept] = weights[:, :kept]
    # After the weights: some optimizers begin with a state that has the weight as its solution.
    row_optimizer(after.optimizer, dim).start(words, dim, rows, every)
    return words


def _moves(optimizer: AnyOptimizer, before: int, after: int) -> Iterator[tuple[slice, slice]]:
    """Pairs of where a weight's state stood among the slots of rows with `before` weights, and where it stands now."""
    kept = min(before, after)
    vectors, of_row = state_of(optimizer)
    for vector in range(vectors):
        yield slice(vector * before, vector * before + kept), slice(vector * after, vector * after + kept)
    if of_row:
        yield slice(vectors * before, None), slice(vectors * after, None)
