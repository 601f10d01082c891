"""Rows as bytes: which shard an id belongs to, and the packed layout that scripts cut into fields. No I/O here.

A row in the store is a value of `4 * (D + K) + 8` bytes, little-endian without padding:
weights float32 x D, optimizer slots float32 x K, count uint32, last step uint32. `docs/store.md` specifies it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.log.record import TableRows
from streamtrain.sparse.jit import kernel, prefetch
from streamtrain.sparse.memory import as_input
from streamtrain.sparse.turns import tickets_of

__all__ = [
    "BYTES_MAX",
    "ID_BYTES",
    "ROWS_MAX",
    "TICKET_BYTES",
    "Grouped",
    "group",
    "pack_rows",
    "pack_tickets",
    "shard_of",
    "unpack_values",
    "value_dtype",
    "warm_up",
]

Words = NDArray[Any]

# 2^64 divided by the golden ratio, odd: Fibonacci hashing (Knuth, TAOCP vol. 3, 6.4) spreads even ids that are no hashes.
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)

ROWS_MAX, BYTES_MAX = 2048, 1 << 20
"""Bounds on one call, so that a script holds the single-threaded server for a few milliseconds at most."""

ID_BYTES, TICKET_BYTES = 8, 4
ID_WORDS, TAIL_WORDS = 2, 2
"""Words of 4 bytes: of an id; and of a row's count and last step."""
AHEAD = 8


def shard_of(ids: NDArray[np.uint64], shards: int) -> NDArray[np.uint16]:
    """The shard of each id: the upper half of `id * constant mod 2^64`, scaled to [0, shards).

    Scaling by multiplication instead of a remainder: Lemire, Fast Random Integer Generation in an Interval, 2019.
    """
    upper = (ids * _MULTIPLIER) >> _HALF
    return ((upper * np.uint64(shards)) >> _HALF).astype(np.uint16)


def value_dtype(dim: int, slots: int) -> np.dtype[np.void]:
    """The packed layout of a value."""
    return np.dtype(
        [("weights", "<f4", (dim,)), ("slots", "<f4", (slots,)), ("count", "<u4"), ("last_step", "<u4")]
    )


@dataclass(frozen=True, slots=True)
class Grouped:
    """Positions of N ids, grouped by shard and in their old order within one.

    Attributes:
      order: `[N]` int64.
      bounds: `[shards + 1]` int64: shard s has `order[bounds[s]:bounds[s + 1]]`.
    """

    order: NDArray[np.int64]
    bounds: NDArray[np.int64]

    def shard(self, shard: int) -> NDArray[np.int64]:
        return self.order[self.bounds[shard] : self.bounds[shard + 1]]


def group(ids: NDArray[np.uint64], shards: int) -> Grouped:
    """Groups `[N]` uint64 ids by shard."""
    of = shard_of(ids, shards)
    bounds = np.zeros(shards + 1, np.int64)
    np.cumsum(np.bincount(of, minlength=shards), out=bounds[1:])
    # A stable sort of uint16 is a radix sort in numpy: linear in N.
    return Grouped(np.argsort(of, kind="stable"), bounds)


def pack_rows(rows: TableRows, index: NDArray[np.int64]) -> bytes:
    """Rows `index` of `rows`, each as 8 bytes of id and its value."""
    words = ID_WORDS + rows.weights.shape[1] + rows.slots.shape[1] + TAIL_WORDS
    packed = np.empty((len(index), words), np.uint32)
    ids, counts, last_steps = (
        as_input(column, dtype).view(np.uint32)
        for column, dtype in ((rows.ids, np.uint64), (rows.counts, np.uint32), (rows.last_steps, np.uint32))
    )
    weights, slots = (as_input(part, np.float32).view(np.uint32) for part in (rows.weights, rows.slots))
    _pack(ids.reshape(-1, ID_WORDS), weights, slots, counts, last_steps, as_input(index, np.int64), packed)
    return packed.tobytes()


@kernel
def _pack(
    ids: Words, weights: Words, slots: Words, counts: Words, last_steps: Words, index: Words, packed: Words
) -> None:
    """Copies rows into one block, on a machine whose byte order is that of the store, which JAX has no other of.

    Args:
      ids: `[R, 2]` uint32, halves of the ids; weights, slots: `[R, D]`, `[R, K]` uint32, bits of float32; counts,
        last_steps: `[R]` uint32; all read-only.
      index: `[N]` int64, which rows.
      packed: `[N, 2 + D + K + 2]` uint32; overwritten.
    """
    dim, held = weights.shape[1], slots.shape[1]
    for n in range(index.size):
        # The rows of a shard lie all over the record.
        if n + AHEAD < index.size:
            near = index[n + AHEAD]
            prefetch(weights, near, np.int64(0))
            prefetch(weights, near, np.int64(64))
            prefetch(slots, near, np.int64(0))
            prefetch(slots, near, np.int64(64))
        row, out = index[n], packed[n]
        out[0], out[1] = ids[row, 0], ids[row, 1]
        for d in range(dim):
            out[2 + d] = weights[row, d]
        for k in range(held):
            out[2 + dim + k] = slots[row, k]
        out[2 + dim + held] = counts[row]
        out[3 + dim + held] = last_steps[row]


def warm_up() -> None:
    """Compiles the kernel, or takes it from the disk. It takes seconds the first time: call it in a thread."""
    pack_rows(TableRows.empty(1, 1), np.empty(0, np.int64))


def pack_tickets(ids: NDArray[np.uint64]) -> bytes:
    """The tickets of ids, 4 bytes each, as strings in their order."""
    return tickets_of(ids).astype(">u4").tobytes()


def unpack_values(ids: NDArray[np.uint64], values: NDArray[np.void]) -> TableRows:
    """Rows of `[R]` ids and their `[R]` values of `value_dtype`, as arrays of their own in native byte order."""
    return TableRows(
        np.array(ids, np.uint64),
        np.array(values["weights"], np.float32, order="C"),
        np.array(values["slots"], np.float32, order="C"),
        np.array(values["count"], np.uint32),
        np.array(values["last_step"], np.uint32),
    )
