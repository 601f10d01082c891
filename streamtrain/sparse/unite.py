"""The distinct ids of a minibatch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamtrain.sparse import probing

__all__ = ["United", "Uniter", "distinct"]

SERIAL_LIMIT = 2**32
CAPACITY_MIN = 1024


@dataclass(frozen=True, slots=True)
class United:
    """The U distinct ids among N, valid until the next minibatch is united.

    Attributes:
      ids: `[U]` uint64, in the order of their first occurrence.
      inverse: `[N]` int32, the position in `ids` of each of the N.
      occurrences: `[U]` uint32, how often each id occurs.
    """

    ids: NDArray[np.uint64]
    inverse: NDArray[np.int32]
    occurrences: NDArray[np.uint32]


class Uniter:
    """Unites ids in memory that it keeps: about 32 to 48 bytes for each id of the largest minibatch. For one thread."""

    def __init__(self) -> None:
        self._reserve(CAPACITY_MIN)

    def _reserve(self, capacity: int) -> None:
        self._seen = np.zeros(2 * capacity, np.uint64)
        self._ids = np.empty(capacity, np.uint64)
        self._inverse = np.empty(capacity, np.int32)
        self._occurrences = np.empty(capacity, np.uint32)
        self._serial = 0

    def unite(self, values: NDArray[np.uint64]) -> United:
        """Finds the distinct ids of `values` (`[N]` uint64)."""
        size = len(values)
        capacity = 1 << max(size - 1, CAPACITY_MIN - 1).bit_length()
        self._serial += 1
        if capacity > len(self._ids) or self._serial == SERIAL_LIMIT:
            self._reserve(max(capacity, len(self._ids)))
            self._serial = 1
        # A small minibatch probes the front of a large memory only, which stays in the nearer caches.
        seen = self._seen[: 2 * capacity]
        count = probing.unite(
            values, np.uint64(self._serial), seen, self._ids, self._inverse, self._occurrences
        )
        return United(self._ids[:count], self._inverse[:size], self._occurrences[:count])


def distinct(ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The ids (`[N]` uint64), each once, ascending. `np.unique` hashes integers since NumPy 2.3: a hundred times slower."""
    ids = np.sort(ids)
    first = np.ones(len(ids), np.bool_)
    np.not_equal(ids[1:], ids[:-1], out=first[1:])
    return ids[first]
