"""What rehearsals are made of, which compile every kernel before it matters."""

from __future__ import annotations

import numpy as np

from streamtrain.layout import Layout
from streamtrain.samples.batch import Ragged, SampleBatch

__all__ = ["ROWS", "sample_batch"]

ROWS = 2048  # More than an index holds at first, so that it grows once.


def sample_batch(layout: Layout) -> SampleBatch:
    """One sample with two ids in every slot of the layout, grouped where the layout has levels."""
    weighted = {columns.name for columns in layout.pooled if columns.pooling == "weighted"}
    levels = {columns.name: columns.level for columns in layout.pooled}
    levels |= {sequence.name: sequence.level for sequence in layout.sequences}
    values, offsets = np.array([1, 2], np.uint64), np.array([0, 2], np.int64)
    ones = np.ones(2, np.float32)
    return SampleBatch(
        1,
        {n: Ragged(values, offsets, ones if n in weighted else None, level) for n, level in levels.items()},
        np.zeros((1, layout.dense_width), np.float32),
        np.zeros((1, len(layout.labels)), np.float32),
        np.ones(1, np.float32),
        np.zeros(1, np.int64),
        np.zeros(1, np.int64),
        {level: np.zeros(1, np.int32) for level in layout.levels},
    )
