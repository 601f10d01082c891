"""What `streamtrain inspect` tells about a log: read from headers and ids, never whole files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.log.files import typed_errors
from streamtrain.log.lineage import losses_of
from streamtrain.log.merge import merge
from streamtrain.log.reader import LogReader
from streamtrain.log.record import EpochRecord

__all__ = ["inspect"]

_Ids = tuple[NDArray[np.uint64], NDArray[np.uint64]]


def inspect(path: Path | str, lineage: int = 10) -> dict[str, Any]:
    """Describes a log, as JSON values.

    Args:
      path: the log.
      lineage: how many of the newest epochs to list, newest first.

    Returns:
      `path`, `name`, `model_id`, `created_at_ms`, `migrated` (see `ModelDescription`); `epoch` (None of an empty log), `samples` learned in all, `steps`,
      `bad_samples`, `quarantined_minibatches`, `quarantined_samples`, `undone_samples` (by rollbacks), `positions`,
      `leaves` (by partition, learned of the record at its position), `watermark_ms`, `committed_at_ms`; `tables` (by name: `rows`, `dim`, `bytes`);
      `filters` (of tables whose admission has one: `entries`, which are ids or blocks, and their `bytes`);
      `epochs` kept (`first`, `last`, `count`), `bases`, `bytes` on disk;
      `readers` that are registered (`name`, `kind`, `host`, `pid`, `epoch` or None, epochs `behind`, `renewed_at_ms`); `lost`: the gaps that the source skipped, see
      `losses_of`; `lineage`.

    Raises:
      LogError, CorruptRecord, EpochMissing: as `LogReader`.
    """
    log = LogReader.open(path)
    head, epochs, bases = log.head(), log.epochs(), log.bases()
    last = None if head is None else log.describe(head)
    records = _Records(log, bases[-1] if bases else -1, -1 if head is None else head)
    return {
        "path": str(log.path),
        "name": log.model.name,
        "model_id": log.model.model_id,
        "created_at_ms": log.model.created_at_ms,
        "migrated": list(log.model.migrated),
        "epoch": head,
        "samples": 0 if last is None else last.samples_total,
        "steps": 0 if last is None else last.step_next,
        "bad_samples": sum(record.bad_samples for record in records),
        "quarantined_minibatches": sum(record.quarantined_minibatches for record in records),
        "quarantined_samples": sum(record.quarantined_samples for record in records),
        "undone_samples": sum(record.undone_samples for record in records),
        "positions": {} if last is None else dict(last.positions),
        "leaves": {} if last is None else dict(last.leaves),
        "watermark_ms": None if last is None else last.watermark_ms,
        "committed_at_ms": None if last is None else last.committed_at_ms,
        "tables": records.tables(),
        "filters": records.filters(),
        "epochs": {
            "first": epochs[0] if epochs else None,
            "last": epochs[-1] if epochs else None,
            "count": len(epochs),
        },
        "bases": bases,
        "bytes": sum(file.stat().st_size for file in log.path.rglob("*.safetensors")),
        "readers": _readers(log, head),
        "lost": [] if last is None else losses_of(last.notes),
        "lineage": [_line(log, epoch) for epoch in reversed(epochs[-lineage:])] if lineage else [],
    }


class _Records:
    """The newest base and the epochs after it, opened anew at each pass and one at a time: descriptors are few."""

    def __init__(self, log: LogReader, base: int, head: int) -> None:
        self._log, self._base, self._head = log, base, head

    def __iter__(self) -> Iterator[EpochRecord]:
        if self._base >= 0:
            yield self._log.describe_base(self._base)
        for epoch in range(self._base + 1, self._head + 1):
            yield self._log.describe(epoch)

    def tables(self) -> dict[str, dict[str, int]]:
        widths: dict[str, tuple[int, int]] = {}
        for record in self:
            widths |= {
                name: (rows.weights.shape[1], rows.slots.shape[1]) for name, rows in record.tables.items()
            }
        tables = {}
        for name, (dim, slots) in sorted(widths.items()):
            rows = len(merge(self._ids(name))[0])
            tables[name] = {"rows": rows, "dim": dim, "bytes": rows * (16 + 4 * (dim + slots))}
        return tables

    def filters(self) -> dict[str, dict[str, int]]:
        """By table, what its admission filter holds."""
        widths: dict[str, int] = {}
        for record in self:
            widths |= {name: part.values.shape[1] for name, part in record.filters.items()}
        found = {}
        for name, width in sorted(widths.items()):
            parts = (record.filters[name] for record in self if name in record.filters)
            entries = len(merge((part.ids, part.tombstones) for part in parts)[0])
            found[name] = {"entries": entries, "bytes": entries * (8 + width)}
        return found

    def _ids(self, table: str) -> Iterator[_Ids]:
        for record in self:
            if table in record.tables:
                yield record.tables[table].ids, record.tables[table].tombstones


def _readers(log: LogReader, head: int | None) -> list[dict[str, Any]]:
    """Who is registered, leases that have ended too: how long a lease is, the daemon's settings say."""
    with typed_errors("read", log.readers.path):
        found = log.readers.found()
    return [
        {
            "name": reader.name,
            "kind": reader.kind,
            "host": reader.host,
            "pid": reader.pid,
            "epoch": reader.epoch,
            "behind": None if reader.epoch is None or head is None else max(head - reader.epoch, 0),
            "renewed_at_ms": reader.renewed_at_ms,
        }
        for reader in found
    ]


def _line(log: LogReader, epoch: int) -> dict[str, Any]:
    record = log.describe(epoch)
    return {
        "epoch": epoch,
        "digest": log.digest(epoch),
        "committed_at_ms": record.committed_at_ms,
        "writer": record.writer,
        "steps": [record.step_first, record.step_next],
        "samples": record.samples,
        "bad_samples": record.bad_samples,
        "quarantined_minibatches": record.quarantined_minibatches,
        "quarantined_samples": record.quarantined_samples,
        "restores": record.restores,
        "undone_samples": record.undone_samples,
        "event_time_ms": record.event_time_ms,
        "record_time_ms": record.record_time_ms,
        "positions": dict(record.positions),
        "leaves": dict(record.leaves),
        "notes": dict(record.notes),
        "bytes": log.epoch_path(epoch).stat().st_size,
    }
