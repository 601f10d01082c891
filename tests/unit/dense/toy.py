"""Small layouts, minibatches and problems, and embedding rows simple enough to trust without SparseNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streamtrain.dense.model import parse_settings
from streamtrain.dense.net import DenseNet, StepResult
from streamtrain.dense.optimizers import AnyDenseOptimizer
from streamtrain.layout import DenseColumns, Layout, PooledColumns
from streamtrain.layout import Sequence as SequenceColumns


def layout_of(
    pooled: Mapping[str, int],
    *,
    sequences: Mapping[str, tuple[int, int, str | None]] | None = None,
    dense: int = 0,
    labels: Sequence[str] = ("click",),
) -> Layout:
    """A layout of pooled dims by slot and sequences as (length_max, dim, shares)."""
    columns, start = [], 0
    for name, dim in pooled.items():
        columns.append(PooledColumns(name, f"dim{dim}", "sum", start, dim))
        start += dim
    unpooled = tuple(
        SequenceColumns(name, f"dim{dim}", length, dim, shares)
        for name, (length, dim, shares) in (sequences or {}).items()
    )
    floats = (DenseColumns("floats", 0, dense),) if dense else ()
    return Layout(tuple(columns), start, unpooled, floats, dense, tuple(labels))


def net_of(layout: Layout, kind: str, optimizer: AnyDenseOptimizer | None = None, **options: Any) -> DenseNet:
    """A net of one bucket of 16 unless told otherwise; options that begin with `net_` are DenseNet's."""
    arguments = {
        name.removeprefix("net_"): options.pop(name) for name in list(options) if name.startswith("net_")
    }
    arguments = {"batch_size": 16, "buckets": [16], **arguments}
    return DenseNet(layout, parse_settings({"kind": kind, **options}), optimizer, **arguments)


@dataclass
class Minibatch:
    """Arrays that DenseNet takes."""

    pooled: np.ndarray
    sequences: dict[str, tuple[np.ndarray, np.ndarray]]
    dense: np.ndarray
    labels: np.ndarray
    weights: np.ndarray

    @property
    def features(self) -> tuple[Any, ...]:
        return self.pooled, self.sequences, self.dense

    def step(self, net: DenseNet) -> StepResult:
        return net.step(*self.features, self.labels, self.weights)


def minibatch(layout: Layout, size: int, padded: int | None = None, *, seed: int = 0) -> Minibatch:
    """Random samples, then zero rows up to `padded`."""
    random = np.random.default_rng(seed)

    def pad(array: np.ndarray) -> np.ndarray:
        padding = np.zeros(((padded or size) - size, *array.shape[1:]))
        return np.concatenate([array, padding]).astype(np.float32)

    sequences = {}
    for s in layout.sequences:
        mask = np.arange(s.length_max) < random.integers(0, s.length_max + 1, size)[:, None]
        vectors = random.normal(0, 0.5, (size, s.length_max, s.dim)) * mask[:, :, None]
        sequences[s.name] = (pad(vectors), pad(mask))
    return Minibatch(
        pad(random.normal(0, 0.5, (size, layout.pooled_width))),
        sequences,
        pad(random.normal(0, 0.5, (size, layout.dense_width))),
        pad(random.random((size, len(layout.labels))) < 0.5),
        pad(random.uniform(0.5, 2.0, size)),
    )


class Rows:
    """Rows of one table, learned by Adagrad: id i of the table is row i; -1 is no id."""

    def __init__(self, count: int, dim: int, *, seed: int, rate: float = 0.1) -> None:
        self.weights = np.random.default_rng(seed).normal(0, 0.05, (count, dim)).astype(np.float32)
        self._squares = np.full_like(self.weights, 0.1)
        self._rate = rate

    def look_up(self, ids: np.ndarray) -> np.ndarray:
        return self.weights[ids] * (ids >= 0)[..., None].astype(np.float32)

    def learn(self, ids: np.ndarray, gradients: np.ndarray) -> None:
        total = np.zeros_like(self.weights)
        np.add.at(total, ids[ids >= 0], gradients[ids >= 0])
        self._squares += total * total
        self.weights -= self._rate * total / np.sqrt(self._squares)


@dataclass
class Problem:
    """Samples of single-id slots, histories, and labels.

    Attributes:
      ids: by slot, `[N]` ids, or `[N, T]` for an unpooled sequence, -1 where there is none.
      labels: `[N, L]` float32.
      vocabulary: every id is below it.
      shares: by slot, the other slot whose rows it uses.
    """

    ids: dict[str, np.ndarray]
    labels: np.ndarray
    vocabulary: int
    shares: dict[str, str] = field(default_factory=dict)


def taste(seed: int, samples: int = 8192, users: int = 30, items: int = 30) -> Problem:
    """Clicks that depend on the pair of user and item alone: neither says anything by itself."""
    random = np.random.default_rng(seed)
    user, item = random.integers(0, users, samples), random.integers(0, items, samples)
    user_side, item_side = np.resize([-1, 1], users), np.resize([-1, 1], items)
    probability = np.where(user_side[user] * item_side[item] > 0, 0.9, 0.1)
    labels = (random.random(samples) < probability).astype(np.float32)[:, None]
    return Problem({"user": user, "item": item}, labels, max(users, items))


def prequential_logits(net: DenseNet, layout: Layout, problem: Problem, *, size: int = 64) -> np.ndarray:
    """Scores each minibatch of `size`, then learns from it, rows included. Returns `[N, L]` logits."""
    columns = (*layout.pooled, *layout.sequences)
    own = {c.name: Rows(problem.vocabulary, c.dim, seed=i) for i, c in enumerate(columns)}
    rows = {c.name: own[problem.shares.get(c.name, c.name)] for c in columns}
    logits = []
    for start in range(0, len(problem.labels), size):
        ids = {slot: values[start : start + size] for slot, values in problem.ids.items()}
        labels = problem.labels[start : start + size]
        pooled = np.concatenate([rows[c.name].look_up(ids[c.name]) for c in layout.pooled], axis=1)
        sequences = {
            s.name: (rows[s.name].look_up(ids[s.name]), (ids[s.name] >= 0).astype(np.float32))
            for s in layout.sequences
        }
        dense = np.zeros((len(labels), layout.dense_width), np.float32)
        result = net.step(pooled, sequences, dense, labels, np.ones(len(labels), np.float32))
        logits.append(result.logits)
        for c in layout.pooled:
            rows[c.name].learn(ids[c.name], result.grad_pooled[:, c.start : c.start + c.dim])
        for name, gradients in result.grad_sequences.items():
            rows[name].learn(ids[name], gradients)
    return np.concatenate(logits)


def auc(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of (positive, negative) pairs in the right order; logits are distinct enough to ignore ties."""
    ranks = np.empty(len(logits))
    ranks[np.argsort(logits, kind="stable")] = np.arange(1, len(logits) + 1)
    positives = labels > 0.5
    count = positives.sum()
    return float((ranks[positives].sum() - count * (count + 1) / 2) / (count * (len(labels) - count)))
