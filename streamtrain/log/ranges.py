"""Merging tables of any size in bounded memory: one range of ids after the other, the outcome in a file without a name.

The ranges are cut so that each holds about half a million ids of all sources together, whatever the distribution of the ids is.
Memory: about 50 MB for the range in hand. The outcome, 16 bytes for each row that remains, is pages of a file, which the
system writes out and drops when it needs the room.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from streamtrain.log.merge import REMOVED, ROW_BITS, last_of_each

__all__ = ["merge_by_ranges"]

Source = tuple[NDArray[np.uint64], NDArray[np.uint64]]

_RANGE_IDS = 1 << 19
_SCAN_IDS = 1 << 20
_SAMPLES_A_RANGE = 64


def merge_by_ranges(
    sources: Sequence[Source], directory: Path | None = None, check: Callable[[], object] = lambda: None
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """As `merge`, of sources that can be read several times.

    Args:
      sources: at least one, oldest first, each the ids written and the ids removed, disjoint.
      directory: where the file is made; default: the system's for temporary files.
      check: called before each range; what it raises ends the merge.

    Returns:
      ids, locations: as `merge`, read-only.

    Raises:
      OSError: no room for the file.
    """
    columns = [_Column(ids) for source in sources for ids in source]
    with tempfile.TemporaryFile(dir=directory) as ids, tempfile.TemporaryFile(dir=directory) as locations:
        for low, high in _ranges(columns):
            check()
            parts = [_part(column, number, low, high) for number, column in enumerate(columns)]
            found_ids, found = last_of_each(parts)
            alive = found != REMOVED
            ids.write(found_ids[alive].data)
            locations.write(found[alive].data)
        return _mapped(ids, np.dtype(np.uint64)), _mapped(locations, np.dtype(np.int64))


class _Column:
    """Ids of one source, which are looked through once for each range, unless they ascend."""

    def __init__(self, ids: NDArray[np.uint64]) -> None:
        self.ids = ids
        # Overlapping by one, so that the steps between pieces are compared too.
        pieces = (ids[start : start + _SCAN_IDS + 1] for start in range(0, len(ids), _SCAN_IDS))
        self._ascending = all(bool(np.all(piece[1:] > piece[:-1])) for piece in pieces)

    def rows_within(self, low: int, high: int | None) -> NDArray[np.int64]:
        """Numbers of the rows whose id is in [low, high); None: no upper end."""
        if self._ascending:
            ends = [low] if high is None else [low, high]
            first, *rest = np.searchsorted(self.ids, np.array(ends, np.uint64)).tolist()
            return np.arange(first, rest[0] if rest else len(self.ids), dtype=np.int64)
        rows = [np.empty(0, np.int64)]
        for start in range(0, len(self.ids), _SCAN_IDS):
            ids = self.ids[start : start + _SCAN_IDS]
            within = ids >= np.uint64(low)
            if high is not None:
                within &= ids < np.uint64(high)
            rows.append(np.flatnonzero(within) + start)
        return np.concatenate(rows)


def _ranges(columns: Sequence[_Column]) -> Iterator[tuple[int, int | None]]:
    """Cuts all ids into ranges of about `_RANGE_IDS` by a sample of them; an id is never cut from its equals."""
    stride = max(1, _RANGE_IDS // _SAMPLES_A_RANGE)
    samples, count = [np.empty(0, np.uint64)], 0
    for column in columns:
        # As if all columns were one: the first of each alone would be the least of those that ascend.
        samples.append(column.ids[-(count + stride // 2) % stride :: stride])
        count += len(column.ids)
    sample = np.sort(np.concatenate(samples))
    wanted = -(-count // _RANGE_IDS)
    cuts = np.unique(sample[[len(sample) * cut // wanted for cut in range(1, wanted)]]).tolist()
    yield from zip([0, *cuts], [*cuts, None], strict=True)


def _part(
    column: _Column, number: int, low: int, high: int | None
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Ids of a range, with where their rows stand: columns of even number hold ids written, odd ones ids removed."""
    rows = column.rows_within(low, high)
    ids = column.ids[rows]
    if number % 2:
        return ids, np.full(len(rows), REMOVED, np.int64)
    rows |= number // 2 << ROW_BITS
    return ids, rows


def _mapped(file: BinaryIO, dtype: np.dtype[Any]) -> np.ndarray:
    file.flush()
    # An empty file cannot be mapped. A mapping outlives its file's descriptor.
    return np.memmap(file, dtype, "r") if file.tell() else np.empty(0, dtype)
