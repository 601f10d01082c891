"""Slow, obvious oracles of what `streamtrain inspect --table` computes: dicts of rows, and loops over all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from streamtrain.log.record import TableRows

Table = dict[int, tuple[list[float], int, int]]


def applied(parts: Sequence[TableRows]) -> Table:
    """By id: vector, count and last step, after these records."""
    table: Table = {}
    for part in parts:
        for i, id in enumerate(part.ids.tolist()):
            table[id] = (part.weights[i].tolist(), int(part.counts[i]), int(part.last_steps[i]))
        for id in part.tombstones.tolist():
            table.pop(id, None)
    return table


def norm(vector: Sequence[float]) -> float:
    return math.sqrt(sum(x * x for x in vector))


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    return norm([a - b for a, b in zip(one, other, strict=True)])


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    lengths = norm(one) * norm(other)
    return sum(a * b for a, b in zip(one, other, strict=True)) / lengths if lengths else 0.0


def octaves(values: Sequence[float]) -> dict[float, int]:
    """How many values there are from each power of two up to the next; 0 for zeros."""
    counts: dict[float, int] = {}
    for value in values:
        low = 0.0
        if value:
            low = 1.0
            while low > value:
                low /= 2
            while low * 2 <= value:
                low *= 2
        counts[low] = counts.get(low, 0) + 1
    return counts


def life(parts: Sequence[TableRows]) -> list[tuple[int, int, int]]:
    """Of each record: how many rows are new, changed, removed."""
    there: set[int] = set()
    told = []
    for part in parts:
        written, gone = set(part.ids.tolist()), set(part.tombstones.tolist())
        told.append((len(written - there), len(written & there), len(gone & there)))
        there = (there | written) - gone
    return told


def random_parts(rng: np.random.Generator, records: int, ids_max: int, dim: int = 3) -> list[TableRows]:
    """What a stream of records might say of a table: rows that come, change and go."""
    parts = []
    for step in range(records):
        touched = rng.permutation(ids_max)[: int(rng.integers(0, ids_max + 1))].astype(np.uint64)
        written, gone = np.split(touched, [int(len(touched) * 0.8)])
        # Ids all over the range of 64 bits, in no order.
        written, gone = (part * np.uint64(0x9E3779B97F4A7C15) for part in (written, gone))
        n = len(written)
        parts.append(
            TableRows(
                written,
                (rng.normal(size=(n, dim)) * rng.integers(0, 2, (n, 1))).astype(np.float32),
                rng.random((n, 2)).astype(np.float32),
                rng.integers(0, 2**32, n, dtype=np.uint32) >> rng.integers(0, 32, n, dtype=np.uint32),
                np.full(n, max(step - 1, 0), np.uint32),
                gone,
            )
        )
    return parts
