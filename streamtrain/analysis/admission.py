"""Ids that wait for a row: what the admission filter of a table holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from streamtrain.analysis.histogram import Histogram
from streamtrain.analysis.snapshot import Snapshot, merged
from streamtrain.log.merge import gather
from streamtrain.sparse.lifecycle_settings import CountAdmission, CountingBloomAdmission
from streamtrain.sparse.tables import AnyTable

__all__ = ["Waiting", "waiting"]

_TABLE: TypeAdapter[AnyTable] = TypeAdapter(AnyTable)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A filter's content.

    Attributes:
      kind: of the rule.
      threshold: occurrences from which on an id has a row.
      ids: that are counted and have no row; of a Bloom filter an estimate.
      counts: of the exact rule, occurrences so far of each of them; None of a Bloom filter.
      fill: of a Bloom filter, the share of its counters above 0; None of the exact rule.
      mistaken: of a Bloom filter, the chance that an id which never came seems to have come; None of the exact rule.
    """

    kind: str
    threshold: int
    ids: float
    counts: Histogram | None = None
    fill: float | None = None
    mistaken: float | None = None


def waiting(job: Mapping[str, Any], snapshot: Snapshot) -> Waiting | None:
    """What the table's filter holds; None where its rule (`none`, `probability`, one of the user's own) keeps none of ours.

    A Bloom filter of m counters, X of them above 0, with k hashes holds about -(m / k) ln(1 - X / m) ids. Source:
    Swamidass and Baldi, "Mathematical correction for fingerprint similarity measures to improve chemical retrieval",
    Journal of Chemical Information and Modeling 47 (3), 2007.
    """
    settings = job.get("tables", {}).get(snapshot.table)
    rule = None if settings is None else getattr(_TABLE.validate_python(dict(settings)), "admission", None)
    if isinstance(rule, CountAdmission):
        return _exact(rule, snapshot)
    return _bloom(rule, snapshot) if isinstance(rule, CountingBloomAdmission) else None


def _exact(rule: CountAdmission, snapshot: Snapshot) -> Waiting:
    ids, locations = merged(snapshot.filters)
    counts = Histogram()
    for values in gather([part.values for part in snapshot.filters], locations):
        counts.add(np.ascontiguousarray(values).view("<u4").reshape(-1))
    return Waiting(rule.kind, rule.threshold, len(ids), counts=counts)


def _bloom(rule: CountingBloomAdmission, snapshot: Snapshot) -> Waiting:
    # numba is loaded with it, which nothing else here needs.
    from streamtrain.sparse.bloom import COUNTERS, bloom_size, false_positive_rate

    _, locations = merged(snapshot.filters)
    used = sum(
        int(np.count_nonzero(values))
        for values in gather([part.values for part in snapshot.filters], locations)
    )
    size = bloom_size(rule.expected_ids, rule.error)
    counters = size.blocks * COUNTERS
    # With one counter left at 0 it would have been this many.
    empty = max(1 - used / counters, 1 / counters)
    ids = counters / size.hashes * math.log(1 / empty)
    return Waiting(
        rule.kind,
        rule.threshold,
        ids,
        fill=used / counters,
        mistaken=false_positive_rate(ids / size.blocks, size.hashes),
    )
