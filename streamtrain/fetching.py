"""From a job to what brings its rows from the store."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Mapping

from streamtrain.config import Job
from streamtrain.errors import EpochMissing, StreamtrainError
from streamtrain.log.reader import LogReader
from streamtrain.log.recovery import recover
from streamtrain.metrics import Metrics
from streamtrain.sparse.lifecycle_settings import Expiry
from streamtrain.sparse.residents import STORED_IDS_SHARE, rows_within
from streamtrain.sparse.settings import TableSettings
from streamtrain.sparse.stored_ids import StoredIds
from streamtrain.sparse.tables import AnyTable
from streamtrain.sparse.wanted import RowsWanted, rows_wanted
from streamtrain.store.applier import StoreApplier
from streamtrain.store.prefetch import StorePrefetch
from streamtrain.store.progress import Progress
from streamtrain.store.store import Store
from streamtrain.store.sweeps import Sweeps
from streamtrain.store.tier import Tier

__all__ = ["add_stored", "make_prefetch", "make_sweeps", "swept"]

logger = logging.getLogger(__name__)

_ROUNDS_MAX = 4


def make_prefetch(
    job: Job,
    log: LogReader,
    store: Store,
    applier: StoreApplier,
    progress: Progress,
    resident: Collection[str],
    metrics: Metrics,
) -> StorePrefetch | None:
    """What brings rows: of a table with a bound on memory always, of others what was learned before this start.

    Args:
      job: the tables.
      log: read in a thread for which ids have rows; until that is known, the store is asked for every id.
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
    stored: dict[str, StoredIds] = {}
    wanted: dict[str, RowsWanted] = {}

    def refill(ids: StoredIds) -> None:
        _start_adding(log, {name: own for name, own in stored.items() if own is ids})

    for name, table in job.tables.items():
        if isinstance(table, TableSettings) and table.memory_bytes_max is not None:
            rows_max = rows_within(name, table, table.memory_bytes_max)
            stored[name] = StoredIds(name, table.memory_bytes_max // STORED_IDS_SHARE, refill)
            tiers[name] = Tier(name, rows_max, stored[name], applier, progress, metrics)
        elif progress.epoch > 0 and name not in resident:
            wanted[name] = rows_wanted(name, table, job.seed)
    if not (tiers or wanted):
        return None
    if stored:
        _start_adding(log, stored)
    return StorePrefetch(store, applier, job.layout, wanted, progress, metrics, tiers)


def swept(tables: Mapping[str, AnyTable]) -> dict[str, Expiry]:
    """By name, the expiry of tables of which part of the rows is in the store alone."""
    return {
        name: table.expiry
        for name, table in tables.items()
        if isinstance(table, TableSettings)
        and table.memory_bytes_max is not None
        and table.expiry is not None
    }


def make_sweeps(
    job: Job, store: Store, applier: StoreApplier, progress: Progress, metrics: Metrics
) -> Sweeps | None:
    """What brings the rows that expiry looks at; None where these are all in memory. `progress` begins at the log's head."""
    tables = swept(job.tables)
    return Sweeps(store, applier, progress, tables, progress.step, metrics) if tables else None


def _start_adding(log: LogReader, stored: Mapping[str, StoredIds]) -> None:
    threading.Thread(target=add_stored, args=(log, stored), name="stored ids", daemon=True).start()


def add_stored(log: LogReader, stored: Mapping[str, StoredIds]) -> None:
    """Adds, by table, every id that a record of the log has a row of. They are complete then, or stay incomplete on a fault.

    Every byte of these records is checked: an id that is damaged there would be taken for a new one.
    """
    for _ in range(_ROUNDS_MAX):
        try:
            for record in recover(log):
                for name in stored.keys() & record.tables.keys():
                    stored[name].add(record.tables[name].ids)
        except EpochMissing:
            continue  # Folded and collected since it was listed: a newer base has its ids.
        except StreamtrainError as error:
            logger.warning("the store is asked for new ids too, which is slow: %s", error)
            return
        for ids in stored.values():
            ids.complete = True
        return
