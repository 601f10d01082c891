"""Schemas and chunks that several tests of samples use."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from streamtrain.samples.schema import Schema
from streamtrain.sources import Chunk

EVERYTHING = Schema.model_validate(
    {
        "labels": ["click", "like"],
        "event_time": "time",
        "event_time_ahead_max_s": 2_000_000_000,
        "weight": "w",
        "slots": {
            "user": {},
            "word": {"type": "string"},
            "tags": {"type": "string", "many": True, "pooling": "mean"},
            "topics": {"many": True, "weights": "topic_weights", "pooling": "weighted"},
            "history": {"kind": "sequence", "shares": "user", "length_max": 3},
            "words": {
                "kind": "sequence",
                "type": "string",
                "field": "said",
                "length_max": 2,
                "pooling": "sum",
            },
            "price": {"kind": "dense"},
            "vector": {"kind": "dense", "size": 2},
            "price_band": {"kind": "bucket", "field": "price", "boundaries": [-1.5, 0.0, 10.0]},
            "user_band": {"kind": "bucket", "field": "user", "boundaries": [0.0, 100.0]},
            "user_x_word": {"kind": "cross", "of": ["user", "word"]},
            "tags_x_topics": {"kind": "cross", "of": ["tags", "topics", "price_band"], "combinations_max": 4},
            "cross_of_cross": {"kind": "cross", "of": ["user_x_word", "tags", "user", "price_band"]},
        },
    }
)
"""One slot of every kind and form."""

SMALL = Schema.model_validate({"labels": ["click"], "slots": {"user": {}, "tags": {"many": True}}})


def chunk_of(
    records: Sequence[bytes | None] | pa.Table,
    *,
    partition: str = "topic:0",
    first: int = 0,
    offsets: Sequence[int] | None = None,
    next: int | None = None,
    times_ms: Sequence[int] | None = None,
) -> Chunk:
    """A chunk of records at consecutive offsets from `first`, unless `offsets` says otherwise."""
    size = records.num_rows if isinstance(records, pa.Table) else len(records)
    places = np.array(range(first, first + size) if offsets is None else offsets, np.int64)
    times = np.array([1_000 + i for i in range(size)] if times_ms is None else times_ms, np.int64)
    end = (int(places[-1]) + 1 if size else first) if next is None else next
    return Chunk(partition, first, end, places, times, records)
