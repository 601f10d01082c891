"""Grouped samples for tests: any tree that there can be, and ids for its nodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from streamtrain.samples.batch import Ragged, SampleBatch
from streamtrain.samples.schema import DenseSlot, Schema, SequenceSlot, SparseSlot

__all__ = ["grouped_batch", "random_steps", "steps_of_trees"]


def steps_of_trees(levels: int, size_max: int = 24, size_min: int = 0) -> st.SearchStrategy[list[int]]:
    """For each leaf the outermost level that goes on to another node with it; `levels` where it hangs under the same."""
    return st.lists(st.integers(0, levels), min_size=size_min, max_size=size_max)


def random_steps(random: np.random.Generator, levels: int, size: int, mean: float) -> list[int]:
    """Steps of trees whose nodes have about `mean` children each."""
    chances = np.array([mean ** -(levels - level) for level in range(levels)])
    draws = random.random(size)
    return [int(np.searchsorted(chances, draw)) for draw in draws]


def grouped_batch(
    random: np.random.Generator, schema: Schema, steps: Sequence[int], ids: int = 12
) -> SampleBatch:
    """Samples of the tree that `steps` describe, with ids below `ids`, up to 4 in a row of the slots of many."""
    size = len(steps)
    outermost = np.array([0, *steps[1:]][:size], np.int64)
    nodes = {
        level.name: (np.cumsum(outermost <= depth) - 1).astype(np.int32)
        for depth, level in enumerate(schema.levels)
    }
    batch = SampleBatch(
        size,
        {},
        random.standard_normal((size, _dense_width(schema))).astype(np.float32),
        random.integers(0, 2, (size, len(schema.labels))).astype(np.float32),
        random.integers(0, 3, size).astype(np.float32),
        np.arange(size, dtype=np.int64),
        np.arange(size, dtype=np.int64),
        nodes,
    )
    for name, slot in schema.slots.items():
        if isinstance(slot, DenseSlot):
            continue
        level = schema.level(name)
        many = isinstance(slot, SequenceSlot) or (isinstance(slot, SparseSlot) and slot.many)
        counts = random.integers(0, 5, batch.rows(level)) if many else np.ones(batch.rows(level), np.int64)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        weights = None
        if isinstance(slot, SparseSlot) and slot.weights is not None:
            weights = random.standard_normal(offsets[-1]).astype(np.float32)
        values = random.integers(0, ids, offsets[-1]).astype(np.uint64)
        batch.ids[name] = Ragged(values, offsets, weights, level)
    return batch


def _dense_width(schema: Schema) -> int:
    return sum(slot.size for slot in schema.slots.values() if isinstance(slot, DenseSlot))
