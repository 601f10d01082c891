"""From a job to what brings its rows from the store."""

from __future__ import annotations

from collections.abc import Collection

from streamtrain.config import Job
from streamtrain.metrics import Metrics
from streamtrain.sparse.residents import rows_within
from streamtrain.sparse.settings import TableSettings
from streamtrain.sparse.wanted import RowsWanted, rows_wanted
from streamtrain.store.applier import StoreApplier
from streamtrain.store.prefetch import StorePrefetch
from streamtrain.store.progress import Progress
from streamtrain.store.store import Store
from streamtrain.store.tier import Tier

__all__ = ["make_prefetch"]


def make_prefetch(
    job: Job,
    store: Store,
    applier: StoreApplier,
    progress: Progress,
    resident: Collection[str],
    metrics: Metrics,
) -> StorePrefetch | None:
    """What brings rows: of a table with a bound on memory always, of others what was learned before this start.

    Args:
      job: the tables.
      store, applier: have the epoch of `progress`.
      progress: begins at the log's head.
      resident: tables whose rows are all in memory.
      metrics: counts.

    Returns:
      None where no row will be asked for.

    Raises:
      ConfigError: a bound on memory is too small for one row, or there is no address space.
    """
    tiers: dict[str, Tier] = {}
    wanted: dict[str, RowsWanted] = {}
    for name, table in job.tables.items():
        if isinstance(table, TableSettings) and table.memory_bytes_max is not None:
            rows_max = rows_within(name, table, table.memory_bytes_max)
            tiers[name] = Tier(name, rows_max, applier, progress, metrics)
        elif progress.epoch > 0 and name not in resident:
            wanted[name] = rows_wanted(name, table, job.seed)
    if not (tiers or wanted):
        return None
    return StorePrefetch(store, applier, job.layout, wanted, progress, metrics, tiers)
