"""Makes samples of checked columns: feature ids, buckets, crosses, each once a node of its level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streamtrain.samples.arrays import hash_values
from streamtrain.samples.batch import Ragged, SampleBatch
from streamtrain.samples.checks import LevelColumns, event_times
from streamtrain.samples.hashing import hash_crosses
from streamtrain.samples.schema import BucketSlot, CrossSlot, DenseSlot, Schema, SequenceSlot, SparseSlot

__all__ = ["Builder"]


class Builder:
    """Builds one batch.

    Args:
      schema: the samples.
      bucket_ids: by slot, the feature id of each bucket.
      levels: the root's first, the samples last; none of their rows is bad or without a sample.
      rows: by level, `[B]` int64, the row there of each sample.

    Attributes:
      hashed: by slot of ids: its namespace, the values, their ids.
    """

    def __init__(
        self,
        schema: Schema,
        bucket_ids: Mapping[str, NDArray[np.uint64]],
        levels: Sequence[LevelColumns],
        rows: Sequence[NDArray[np.int64]],
    ) -> None:
        self._schema, self._bucket_ids = schema, bucket_ids
        self._depths = {level.rows.name: depth for depth, level in enumerate(levels)}
        self._levels, self._rows = levels, rows
        self.hashed: list[tuple[str, NDArray[np.int64] | pa.Array, NDArray[np.uint64]]] = []

    def samples(self, times_ms: NDArray[np.int64], *, grouped: bool) -> SampleBatch:
        """The batch; `times_ms` is that of each sample's record."""
        schema, leaves = self._schema, self._levels[-1]
        size = leaves.size
        labels = np.empty((size, len(schema.labels)), np.float32)
        for i, name in enumerate(schema.labels):
            labels[:, i] = leaves.scalars(name, 0.0)
        weights = np.ones(size, np.float32)
        if schema.weight is not None:
            weights = leaves.scalars(schema.weight, 1.0)
        event_time_ms = event_times(leaves, schema.event_time, times_ms)
        slots = schema.slots.items()
        dense = np.zeros((size, sum(s.size for _, s in slots if isinstance(s, DenseSlot))), np.float32)
        ids: dict[str, Ragged] = {}
        width = 0
        for name, slot in slots:
            # What is not grouped has all of its slots at the samples' level.
            depth = self._depths[schema.level(name)] if grouped else 0
            if isinstance(slot, DenseSlot):
                self._dense(depth, slot.field or name, slot.size, dense[:, width : width + slot.size])
                width += slot.size
            elif isinstance(slot, CrossSlot):
                ids[name] = self._cross(depth, name, slot, ids)
            else:
                ids[name] = self._ids(self._levels[depth], name, slot)
        nodes = {level.rows.name: rows.astype(np.int32) for level, rows in zip(self._levels[:-1], self._rows)}
        record_time_ms = np.where(times_ms < 0, event_time_ms, times_ms)
        return SampleBatch(size, ids, dense, labels, weights, event_time_ms, record_time_ms, nodes)

    def _ids(self, level: LevelColumns, name: str, slot: SparseSlot | SequenceSlot | BucketSlot) -> Ragged:
        at = level.rows.name
        column = level.column(slot.field or name)
        if isinstance(slot, BucketSlot):
            buckets = np.searchsorted(np.asarray(slot.boundaries), column.values, side="right")
            return Ragged(self._bucket_ids[name][buckets], column.offsets, level=at)
        if isinstance(slot, SparseSlot):
            weights = (
                None if slot.weights is None else np.asarray(level.floats(slot.weights).values, np.float32)
            )
            return Ragged(self._hash(name, column.values), column.offsets, weights, at)
        lengths, values, offsets = column.lengths, column.values, column.offsets
        if lengths.max(initial=0) > slot.length_max:
            kept = np.minimum(lengths, slot.length_max)
            shortened = np.zeros(len(offsets), np.int64)
            np.cumsum(kept, out=shortened[1:])
            # Kept value j of row i is the row's end minus as many as the row keeps from j on.
            tail = np.arange(shortened[-1]) + np.repeat(offsets[1:] - shortened[1:], kept)
            values, offsets = values.take(tail), shortened
        return Ragged(self._hash(name, values), offsets, level=at)

    def _hash(self, name: str, values: NDArray[np.int64] | pa.Array) -> NDArray[np.uint64]:
        namespace = self._schema.namespace(name)
        ids = hash_values(values, namespace)
        self.hashed.append((namespace, values, ids))
        return ids

    def _dense(self, depth: int, field: str, size: int, out: NDArray[np.float32]) -> None:
        """Fills `out`, `[B, size]`, which is zeros; a sample has what its node has."""
        level = self._levels[depth]
        column = level.floats(field)
        if depth == len(self._levels) - 1:
            out[column.present] = column.values.reshape(-1, size)
            return
        nodes = np.zeros((level.size, size), np.float32)
        nodes[column.present] = column.values.reshape(-1, size)
        out[:] = nodes[self._rows[depth]]

    def _cross(self, depth: int, name: str, slot: CrossSlot, ids: Mapping[str, Ragged]) -> Ragged:
        level = self._levels[depth]
        parts = [self._at(ids[part], depth) for part in slot.of]
        offsets = np.zeros(level.size + 1, np.int64)
        np.cumsum(np.prod([np.diff(part.offsets) for part in parts], axis=0), out=offsets[1:])
        crossed = hash_crosses([p.values for p in parts], [p.offsets for p in parts], offsets, name)
        return Ragged(crossed, offsets, level=level.rows.name)

    def _at(self, part: Ragged, depth: int) -> Ragged:
        """What the nodes of a level have of a slot, be it from a level above."""
        name = self._levels[depth].rows.name
        if part.level == name:
            return part
        # A node's row above is that of the first sample under it.
        first = np.searchsorted(self._rows[depth], np.arange(self._levels[depth].size))
        return part.take(self._rows[self._depths[part.level]][first].astype(np.int32), name)
