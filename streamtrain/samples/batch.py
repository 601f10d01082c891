"""Samples in memory: columnar and ragged, with no Python object per sample.

Grouped samples are leaves of trees, and B is the number of leaves. What a node above them holds stands once, at its
level, and `nodes` says which node each leaf hangs under.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from streamtrain.samples.schema import LEAF

__all__ = ["Ragged", "SampleBatch"]


@dataclass(frozen=True, slots=True)
class Ragged:
    """The feature ids of one slot for R rows: B samples, or the nodes of a level.

    Attributes:
      values: `[N]` uint64, the ids of all rows one after the other.
      offsets: `[R + 1]` int64, ascending from 0 to N: row i has `values[offsets[i]:offsets[i + 1]]`.
      weights: `[N]` float32, one per id, or None.
      level: whose nodes the rows are; LEAF: they are the samples.
    """

    values: NDArray[np.uint64]
    offsets: NDArray[np.int64]
    weights: NDArray[np.float32] | None = None
    level: str = LEAF

    def slice(self, start: int, stop: int) -> Ragged:
        first, last = int(self.offsets[start]), int(self.offsets[stop])
        return Ragged(
            self.values[first:last],
            self.offsets[start : stop + 1] - first,
            None if self.weights is None else self.weights[first:last],
            self.level,
        )

    def take(self, rows: NDArray[np.int32], level: str = LEAF) -> Ragged:
        """Row `rows[i]` as row i of a level."""
        starts, counts = self.offsets[rows], np.diff(self.offsets)[rows]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        places = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], counts)
        return Ragged(
            self.values[places], offsets, None if self.weights is None else self.weights[places], level
        )

    @staticmethod
    def concat(parts: Sequence[Ragged]) -> Ragged:
        if len(parts) == 1:
            return parts[0]
        offsets = [parts[0].offsets]
        total = int(parts[0].offsets[-1])
        for part in parts[1:]:
            offsets.append(part.offsets[1:] + total)
            total += int(part.offsets[-1])
        weights = None if parts[0].weights is None else np.concatenate([p.weights for p in parts])
        return Ragged(
            np.concatenate([p.values for p in parts]), np.concatenate(offsets), weights, parts[0].level
        )


@dataclass(frozen=True, slots=True)
class SampleBatch:
    """B samples.

    Attributes:
      size: B.
      ids: by name, each sparse, bucket, cross and sequence slot, in the schema's order.
      dense: `[B, F]` float32, the dense slots side by side in the schema's order; F may be 0.
      labels: `[B, L]` float32 in [0, 1], in the schema's order.
      weights: `[B]` float32, >= 0.
      event_time_ms: `[B]` int64, milliseconds since 1970; TIME_UNKNOWN where neither sample nor record has a time.
      record_time_ms: `[B]` int64, when the record reached the source (Kafka's timestamp; the event time for files).
      nodes: for grouped samples, by level above the leaves, the root's first, `[B]` int32: the node that each sample hangs
        under. It begins with 0 and takes steps of 0 or 1, so that no node is without a sample; where a level takes a
        step, so do those below it. Every level of the schema is there. Empty: the samples are not grouped, and every
        slot's rows are samples.
    """

    size: int
    ids: dict[str, Ragged]
    dense: NDArray[np.float32]
    labels: NDArray[np.float32]
    weights: NDArray[np.float32]
    event_time_ms: NDArray[np.int64]
    record_time_ms: NDArray[np.int64]
    nodes: dict[str, NDArray[np.int32]] = field(default_factory=dict)

    def rows(self, level: str) -> int:
        """How many nodes a level has; of the leaves, B."""
        nodes = self.nodes.get(level)
        return self.size if nodes is None else int(nodes[-1]) + 1 if len(nodes) else 0

    def leaves(self, level: str) -> NDArray[np.int64]:
        """How many samples are under each node of a level (`[N_l]`)."""
        nodes = self.nodes.get(level)
        return np.ones(self.size, np.int64) if nodes is None else np.bincount(nodes)

    def parents(self, level: str, below: str) -> NDArray[np.int32]:
        """The node of `level` that each node of the level `below` it hangs under; LEAF below: each sample."""
        if level not in self.nodes:
            return np.arange(self.size, dtype=np.int32)
        nodes = self.nodes[level]
        if below == LEAF:
            return nodes
        return nodes[np.flatnonzero(np.diff(self.nodes[below], prepend=np.int32(-1)))]

    def slice(self, start: int, stop: int) -> SampleBatch:
        """Samples `start` to `stop` (exclusive), as views. Nodes that the edge cuts are in the slices on both sides."""
        if start == 0 and stop == self.size:
            return self
        bounds = {LEAF: (start, stop)}
        for level, nodes in self.nodes.items():
            bounds[level] = (int(nodes[start]), int(nodes[stop - 1]) + 1) if start < stop else (0, 0)
        return SampleBatch(
            stop - start,
            {name: ragged.slice(*bounds[ragged.level]) for name, ragged in self.ids.items()},
            self.dense[start:stop],
            self.labels[start:stop],
            self.weights[start:stop],
            self.event_time_ms[start:stop],
            self.record_time_ms[start:stop],
            {level: nodes[start:stop] - np.int32(bounds[level][0]) for level, nodes in self.nodes.items()},
        )

    @staticmethod
    def concat(parts: Sequence[SampleBatch]) -> SampleBatch:
        """The samples of `parts` (one or more, of one schema) in order.

        Where some are grouped, the others become trees of one sample each.
        """
        if len(parts) == 1:
            return parts[0]
        if grouped := next((part for part in parts if part.nodes), None):
            parts = [part if part.nodes else part._alone(grouped) for part in parts]
        return SampleBatch(
            sum(p.size for p in parts),
            {name: Ragged.concat([p.ids[name] for p in parts]) for name in parts[0].ids},
            np.concatenate([p.dense for p in parts]),
            np.concatenate([p.labels for p in parts]),
            np.concatenate([p.weights for p in parts]),
            np.concatenate([p.event_time_ms for p in parts]),
            np.concatenate([p.record_time_ms for p in parts]),
            {level: _joined([p.nodes[level] for p in parts]) for level in parts[0].nodes},
        )

    def expanded(self) -> SampleBatch:
        """The same samples, not grouped: each with a copy of what its nodes hold."""
        if not self.nodes:
            return self
        ids = {n: r if r.level == LEAF else r.take(self.nodes[r.level]) for n, r in self.ids.items()}
        return replace(self, ids=ids, nodes={})

    def _alone(self, like: SampleBatch) -> SampleBatch:
        """The samples, which are not grouped, each alone in a tree of the levels of `like`."""
        own = np.arange(self.size, dtype=np.int32)
        ids = {name: replace(ragged, level=like.ids[name].level) for name, ragged in self.ids.items()}
        return replace(self, ids=ids, nodes=dict.fromkeys(like.nodes, own))


def _joined(parts: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    """The nodes of one level, numbered on from part to part."""
    counts = np.cumsum([0, *(int(part[-1]) + 1 if len(part) else 0 for part in parts)], dtype=np.int32)
    return np.concatenate([part + before for part, before in zip(parts, counts, strict=False)])
