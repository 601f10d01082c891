"""Slow, obvious oracles of the sparse half: dicts, Python integers, and NumPy float32 one scalar at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
import xxhash

from streamtrain.layout import Layout
from streamtrain.samples.batch import SampleBatch
from streamtrain.sparse.settings import (
    Adagrad,
    Adam,
    AnyInit,
    Constant,
    Ftrl,
    Normal,
    RowwiseAdagrad,
    Sgd,
    TableSettings,
    Uniform,
)

MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15
f32 = np.float32


def mix(z: int) -> int:
    z &= MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def initial_weights(
    init: AnyInit, seed: int, table: str, id: int, dim: int, key_of_table: int | None = None
) -> np.ndarray:
    """The text of streamtrain/sparse/init.py, read aloud."""
    table_key = key_of_table
    if table_key is None:
        table_key = mix(mix(seed + GAMMA) ^ xxhash.xxh64_intdigest(table.encode()))
    key = mix(table_key ^ mix(id + GAMMA))

    def word(j: int) -> int:
        return mix(key + (j + 1) * GAMMA)

    weights = []
    for d in range(dim):
        match init:
            case Constant():
                weights.append(f32(init.value))
            case Uniform():
                weights.append(f32(init.scale * ((2 * (word(d) >> 40) - 2**24) / 2**24)))
            case Normal():
                lane = (word(d // 4) >> (16 * (d % 4))) & 0xFFFF
                quantile = f32(NormalDist().inv_cdf(0.5 + (2 * (lane & 0x7FFF) + 1) / 2**17))
                weights.append(f32(init.std * float(-quantile if lane & 0x8000 else quantile)))
    return np.array(weights, f32)


@dataclass
class Row:
    """One row, as columns that a person can read."""

    weights: list[np.float32]
    state: dict[str, list[np.float32]]
    count: int = 0
    last_step: int = 0

    def slots(self, kind: str) -> list[np.float32]:
        order = {
            "sgd": [],
            "adagrad": ["n"],
            "rowwise_adagrad": ["n"],
            "adam": ["m", "v", "t"],
            "ftrl": ["z", "n"],
        }
        return [value for name in order[kind] for value in self.state[name]]


def new_row(settings: TableSettings, seed: int, table: str, id: int) -> Row:
    weights = list(initial_weights(settings.init, seed, table, id, settings.dim))
    zeros = [f32(0)] * settings.dim
    match settings.optimizer:
        case Sgd():
            state = {}
        case Adagrad() as o:
            state = {"n": [f32(o.initial_accumulator)] * settings.dim}
        case RowwiseAdagrad() as o:
            state = {"n": [f32(o.initial_accumulator)]}
        case Adam():
            state = {"m": list(zeros), "v": list(zeros), "t": [f32(0)]}
        case Ftrl() as o:
            scale = f32(o.beta) / f32(o.alpha) + f32(o.l2)
            z = [-w * scale - f32(np.sign(w)) * f32(o.l1) for w in weights]
            state = {"z": z, "n": list(zeros)}
    return Row(weights, state)


def learn(row: Row, o: object, gradient: Sequence[np.float32], occurrences: int, step: int) -> None:
    """One update of one row, element by element, in float32."""
    dim = len(row.weights)
    s, w = row.state, row.weights
    if not isinstance(o, Ftrl):
        gradient = [g + f32(o.l2) * x for g, x in zip(gradient, w)]  # type: ignore[attr-defined]
    match o:
        case Sgd():
            row.weights = [x - f32(o.learning_rate) * g for x, g in zip(w, gradient)]
        case Adagrad():
            s["n"] = [n + g * g for n, g in zip(s["n"], gradient)]
            row.weights = [
                x - f32(o.learning_rate) * g / (np.sqrt(n) + f32(o.epsilon))
                for x, g, n in zip(w, gradient, s["n"])
            ]
        case RowwiseAdagrad():
            total = f32(0)
            for g in gradient:
                total = total + g * g
            n = s["n"][0] + total / f32(dim)
            s["n"] = [n]
            rate = f32(o.learning_rate) / (np.sqrt(n) + f32(o.epsilon))
            row.weights = [x - rate * g for x, g in zip(w, gradient)]
        case Adam():
            t = s["t"][0] + f32(1)
            correct1, correct2 = f32(1 - _power(o.beta1, int(t))), f32(1 - _power(o.beta2, int(t)))
            s["t"] = [t]
            s["m"] = [f32(o.beta1) * m + f32(1 - o.beta1) * g for m, g in zip(s["m"], gradient)]
            s["v"] = [f32(o.beta2) * v + f32(1 - o.beta2) * g * g for v, g in zip(s["v"], gradient)]
            row.weights = [
                x - f32(o.learning_rate) * (m / correct1) / (np.sqrt(v / correct2) + f32(o.epsilon))
                for x, m, v in zip(w, s["m"], s["v"])
            ]
        case Ftrl():
            alpha, beta, l1, l2 = f32(o.alpha), f32(o.beta), f32(o.l1), f32(o.l2)
            for d, g in enumerate(gradient):
                n = s["n"][d] + g * g
                sigma = (np.sqrt(n) - np.sqrt(s["n"][d])) / alpha
                z = s["z"][d] + (g - sigma * w[d])
                s["z"][d], s["n"][d] = z, n
                scale = (beta + np.sqrt(n)) / alpha + l2
                if abs(z) <= l1:
                    w[d] = f32(0)
                elif scale > 0:
                    w[d] = -(z - f32(math.copysign(l1, z))) / scale
    row.count = min(row.count + occurrences, 2**32 - 1)
    row.last_step = step % 2**32


def _power(base: float, exponent: int) -> float:
    result = 1.0
    while exponent:
        if exponent % 2:
            result *= base
        base, exponent = base * base, exponent // 2
    return result


@dataclass
class ReferenceNet:
    """SparseNet with a dict for a table: id to Row."""

    layout: Layout
    settings: Mapping[str, TableSettings]
    seed: int
    tables: dict[str, dict[int, Row]] = field(init=False)
    dirty: dict[str, dict[int, None]] = field(init=False)
    removed: dict[str, dict[int, None]] = field(init=False)

    def __post_init__(self) -> None:
        self.tables = {name: {} for name in self.settings}
        self.dirty = {name: {} for name in self.settings}
        self.removed = {name: {} for name in self.settings}

    def _slots(self, table: str) -> list[tuple[str, str]]:
        pooled = [(c.name, c.pooling) for c in self.layout.pooled if c.table == table]
        return pooled + [(s.name, "none") for s in self.layout.sequences if s.table == table]

    def row(self, table: str, id: int) -> Row:
        return self.tables[table].get(id) or new_row(self.settings[table], self.seed, table, id)

    def insert(self, batch: SampleBatch) -> None:
        for table in self.settings:
            for slot, _ in self._slots(table):
                for id in batch.ids[slot].values.tolist():
                    self.tables[table][id] = self.row(table, id)

    def score(
        self, batch: SampleBatch, padded: int
    ) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]]]:
        pooled = np.zeros((padded, self.layout.pooled_width), f32)
        for columns in self.layout.pooled:
            for i in range(batch.size):
                for id, scale in occurrences_of(batch, columns.name, columns.pooling, i):
                    for d, w in enumerate(self.row(columns.table, id).weights):
                        pooled[i, columns.start + d] += scale * w
        sequences = {}
        for s in self.layout.sequences:
            vectors = np.zeros((padded, s.length_max, s.dim), f32)
            mask = np.zeros((padded, s.length_max), f32)
            for i in range(batch.size):
                for k, (id, _) in enumerate(occurrences_of(batch, s.name, "none", i)[-s.length_max :]):
                    vectors[i, k], mask[i, k] = self.row(s.table, id).weights, 1
            sequences[s.name] = (vectors, mask)
        return pooled, sequences

    def backward(
        self, batch: SampleBatch, grad_pooled: np.ndarray, grad_sequences: Mapping[str, np.ndarray], step: int
    ) -> None:
        for table, settings in self.settings.items():
            sums: dict[int, list[np.float32]] = {}
            counts: dict[int, int] = {}
            for slot, _ in self._slots(table):
                for id in batch.ids[slot].values.tolist():
                    sums[id] = [f32(0)] * settings.dim
                    counts[id] = counts.get(id, 0) + 1
            for i in range(batch.size):
                for columns in self.layout.pooled:
                    if columns.table == table:
                        gradient = grad_pooled[i, columns.start : columns.start + columns.dim]
                        for id, scale in occurrences_of(batch, columns.name, columns.pooling, i):
                            sums[id] = [total + scale * g for total, g in zip(sums[id], gradient)]
            for s in self.layout.sequences:
                if s.table == table:
                    for i in range(batch.size):
                        for k, (id, _) in enumerate(
                            occurrences_of(batch, s.name, "none", i)[-s.length_max :]
                        ):
                            gradient = grad_sequences[s.name][i, k]
                            sums[id] = [total + g for total, g in zip(sums[id], gradient)]
            for id, gradient in sums.items():
                learn(self.tables[table][id], settings.optimizer, gradient, counts[id], step)
                self.dirty[table].setdefault(id)

    def remove(self, table: str, ids: Sequence[int]) -> None:
        for id in ids:
            if self.tables[table].pop(id, None) is not None:
                self.removed[table].setdefault(id)
                self.dirty[table].pop(id, None)

    def cut(self, table: str) -> tuple[list[int], list[int]]:
        """Ids of dirty rows in order, and tombstones in order; clears both."""
        rows = list(self.dirty[table])
        tombstones = [id for id in self.removed[table] if id not in self.dirty[table]]
        self.dirty[table], self.removed[table] = {}, {}
        return rows, tombstones


def occurrences_of(batch: SampleBatch, slot: str, pooling: str, sample: int) -> list[tuple[int, np.float32]]:
    """The ids of a slot of a sample, each with its share in the pooled vector."""
    ragged = batch.ids[slot]
    first, last = int(ragged.offsets[sample]), int(ragged.offsets[sample + 1])
    ids = ragged.values[first:last].tolist()
    if pooling == "weighted":
        assert ragged.weights is not None
        return list(zip(ids, ragged.weights[first:last]))
    share = f32(1) / f32(len(ids)) if pooling == "mean" and ids else f32(1)
    return [(id, share) for id in ids]
