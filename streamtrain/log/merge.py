"""Folding rows: which row of which source is the last word on each id. Arrays in, arrays out; no files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["REMOVED", "ROW_BITS", "ROW_MASK", "gather", "last_of_each", "merge"]

ROW_BITS = 40
ROW_MASK = (1 << ROW_BITS) - 1
REMOVED = -1
_PENDING_IDS_MAX = 4_000_000
_CHUNK_ROWS = 1 << 16


def merge(
    sources: Iterable[tuple[NDArray[np.uint64], NDArray[np.uint64]]],
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Finds what remains of a table when sources are applied in order: the last write of an id wins.

    Memory: 16 bytes for each distinct id, and for each of at most 4 million ids not yet united, times about three.

    Args:
      sources: oldest first, each the ids written and the ids removed, disjoint. They are taken one at a time.

    Returns:
      ids: `[R]` uint64, those that remain, ascending.
      locations: `[R]` int64, where the row of each stands, for `gather`: source << 40 | row.
    """
    ids, locations = np.empty(0, np.uint64), np.empty(0, np.int64)
    pending: list[tuple[NDArray[np.uint64], NDArray[np.int64]]] = []
    waiting = 0
    for source, (written, removed) in enumerate(sources):
        pending.append((written.copy(), np.arange(len(written), dtype=np.int64) | (source << ROW_BITS)))
        pending.append((removed.copy(), np.full(len(removed), REMOVED, np.int64)))
        waiting += len(written) + len(removed)
        # Uniting costs a sort of everything, so it waits until as much is new as is old.
        if waiting > max(_PENDING_IDS_MAX, len(ids)):
            ids, locations = last_of_each([(ids, locations), *pending])
            pending, waiting = [], 0
    ids, locations = last_of_each([(ids, locations), *pending])
    alive = locations != REMOVED
    return ids[alive], locations[alive]


def last_of_each(
    parts: Sequence[tuple[NDArray[np.uint64], NDArray[np.int64]]],
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Of parts, oldest first, each ids and where they stand: every id once, ascending, where its last one stands."""
    ids = np.concatenate([part[0] for part in parts])
    locations = np.concatenate([part[1] for part in parts])
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    last = np.ones(len(ids), bool)
    np.not_equal(ids[1:], ids[:-1], out=last[:-1])
    return ids[last], locations[order[last]]


def gather(arrays: Sequence[np.ndarray], locations: NDArray[np.int64]) -> Iterator[np.ndarray]:
    """Yields the rows at `locations` in order, as pieces of at most 65,536 rows.

    Args:
      arrays: one per source of `merge`, `[rows, ...]`, of the same dtype and width.
      locations: as `merge` returned them.
    """
    for start in range(0, len(locations), _CHUNK_ROWS):
        part = locations[start : start + _CHUNK_ROWS]
        sources = part >> ROW_BITS
        order = np.argsort(sources, kind="stable")
        out = np.empty((len(part), *arrays[0].shape[1:]), arrays[0].dtype)
        for where in np.split(order, np.flatnonzero(np.diff(sources[order])) + 1):
            out[where] = arrays[sources[where[0]]][part[where] & ROW_MASK]
        yield out
