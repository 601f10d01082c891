"""Compiles every kernel before it matters: by a small rehearsal with real tables."""

from __future__ import annotations

import numpy as np

from streamtrain.layout import Layout
from streamtrain.samples.batch import Ragged, SampleBatch
from streamtrain.sparse.table import EmbeddingTable

__all__ = ["ROWS", "rehearse_table", "sample_batch"]

ROWS = 2048  # More than an index holds at first, so that it grows once.


def rehearse_table(table: EmbeddingTable) -> None:
    """Does to an empty twin of `table` whatever can be done to a table."""
    twin = table.empty_twin(ROWS)
    ids = np.arange(ROWS, dtype=np.uint64)
    twin.find_or_insert(ids)
    twin.load(twin.export(), dirty=True)
    twin.remove(ids[:1])
    twin.insert_missing(twin.cut())
    twin.lookup(ids)


def sample_batch(layout: Layout) -> SampleBatch:
    """One sample with two ids in every slot of the layout."""
    weighted = {columns.name for columns in layout.pooled if columns.pooling == "weighted"}
    names = [*(columns.name for columns in layout.pooled), *(sequence.name for sequence in layout.sequences)]
    values, offsets = np.array([1, 2], np.uint64), np.array([0, 2], np.int64)
    ones = np.ones(2, np.float32)
    return SampleBatch(
        1,
        {name: Ragged(values, offsets, ones if name in weighted else None) for name in names},
        np.zeros((1, layout.dense_width), np.float32),
        np.zeros((1, len(layout.labels)), np.float32),
        np.ones(1, np.float32),
        np.zeros(1, np.int64),
        np.zeros(1, np.int64),
    )
