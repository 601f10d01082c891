"""Slow, obvious oracles of the hashed tables: Python integers, dicts, and NumPy float32 one scalar at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import xxhash

from streamtrain.sparse.settings import TableSettings
from streamtrain.sparse.tables import AnyTable, Hashing
from tests.reference_sparse import GAMMA, MASK, Row, initial_weights, learn, mix, new_row

f32 = np.float32


def row_ids(hashing: Hashing, seed: int, table: str, id: int) -> list[int]:
    """The text of docs/row-ids.md, read aloud."""
    table_key = mix(mix(seed + GAMMA) ^ xxhash.xxh64_intdigest(table.encode()))
    key = mix(table_key ^ mix(id + GAMMA))

    def word(p: int) -> int:
        return mix((key + (p + 1) * GAMMA) & MASK)

    if hashing.scheme == "independent":
        buckets = [word(p) % size for p, size in enumerate(hashing.sizes)]
    else:
        number = word(0) % math.prod(hashing.sizes)
        buckets = [number % hashing.sizes[0], number // hashing.sizes[0]]
    return [part * 2**32 + bucket for part, bucket in enumerate(buckets)]


def start(settings: AnyTable, seed: int, table: str, row_id: int) -> Row:
    """A row of a hashed table that nothing has learned yet."""
    assert settings.hashing is not None
    plain = TableSettings(dim=settings.row_dim, optimizer=settings.optimizer, init=settings.init)
    if settings.hashing.combine != "multiply" or row_id < 2**32:
        return new_row(plain, seed, table, row_id)
    weights = initial_weights(settings.init, seed, table, row_id, settings.row_dim) + f32(1)
    # Only FTRL's first state depends on the weights; the tests multiply with others.
    row = new_row(plain, seed, table, row_id)
    row.weights = list(weights)
    return row


@dataclass
class ReferenceHashed:
    """HashedTable with a dict: row id to Row."""

    name: str
    settings: AnyTable
    seed: int
    rows: dict[int, Row] = field(default_factory=dict)
    dirty: dict[int, None] = field(default_factory=dict)

    def parts(self, id: int) -> list[tuple[int, Row]]:
        """The rows of an id, whether they exist or not."""
        assert self.settings.hashing is not None
        ids = row_ids(self.settings.hashing, self.seed, self.name, id)
        return [(r, self.rows.get(r) or start(self.settings, self.seed, self.name, r)) for r in ids]

    def vector(self, id: int) -> list[np.float32]:
        rows = [row.weights for _, row in self.parts(id)]
        match self.settings.hashing.combine:  # type: ignore[union-attr]
            case "concat":
                return [weight for row in rows for weight in row]
            case "add":
                return [_fold(weights, lambda a, b: a + b) for weights in zip(*rows)]
            case "multiply":
                return [_fold(weights, lambda a, b: a * b) for weights in zip(*rows)]

    def learn(
        self, gradients: Mapping[int, Sequence[np.float32]], counts: Mapping[int, int], step: int
    ) -> None:
        """One step: by id, in order, its gradient and how often it occurred."""
        width = self.settings.row_dim
        sums: dict[int, list[np.float32]] = {}
        occurrences: dict[int, int] = {}
        for id, gradient in gradients.items():
            parts = self.parts(id)
            for p, (row_id, _) in enumerate(parts):
                match self.settings.hashing.combine:  # type: ignore[union-attr]
                    case "concat":
                        piece = list(gradient[p * width : (p + 1) * width])
                    case "add":
                        piece = list(gradient)
                    case "multiply":
                        piece = list(gradient)
                        for q, (_, other) in enumerate(parts):
                            if q != p:
                                piece = [g * w for g, w in zip(piece, other.weights)]
                so_far = sums.setdefault(row_id, [f32(0)] * width)
                sums[row_id] = [total + g for total, g in zip(so_far, piece)]
                occurrences[row_id] = occurrences.get(row_id, 0) + counts[id]
        for id in gradients:
            for row_id, row in self.parts(id):
                self.rows.setdefault(row_id, row)
        for row_id, gradient in sums.items():
            learn(self.rows[row_id], self.settings.optimizer, gradient, occurrences[row_id], step)
            self.dirty.setdefault(row_id)


def _fold(values, operation):  # type: ignore[no-untyped-def]
    total = values[0]
    for value in values[1:]:
        total = operation(total, value)
    return total
