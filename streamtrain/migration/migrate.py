"""Begins a new log with what a model has learned, under settings that a model cannot change while it lives.

The old log is only read, also while its daemon learns on: the new model begins at one of its epochs and reads on from
the positions of that epoch. So a migration costs no downtime, and going back is starting the old job again.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from streamtrain.config import Job, parse_job
from streamtrain.errors import ConfigError, EpochMissing, LogError
from streamtrain.identity import differences
from streamtrain.log import format
from streamtrain.log.container import Stream
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.files import Files, typed_errors
from streamtrain.log.fold import SOURCES_MAX, fold_records
from streamtrain.log.reader import LogReader
from streamtrain.log.record import EpochRecord, TableRows
from streamtrain.log.recovery import restored
from streamtrain.migration.dense import DenseMove, moved
from streamtrain.migration.rows import carried_over, keeps_rows
from streamtrain.sparse.settings import TableSettings

__all__ = ["Migration", "TableMove", "migrate", "plan"]


@dataclass(frozen=True, slots=True)
class TableMove:
    """What becomes of a table.

    Attributes:
      table: its name.
      fate: `kept` as it is, `changed` (rows carried over to another dim, optimizer or decay), `new`, `dropped`, or `begun` anew
        because its ids stand for something else now.
      rows: rows carried over.
      lost: rows left behind.
      filter: of a table that had ids wait for admission: whether they wait on (`kept`) or their counts begin anew (`begun`).
    """

    table: str
    fate: str
    rows: int
    lost: int
    filter: str | None = None


@dataclass(frozen=True, slots=True)
class Migration:
    """What a migration does.

    Attributes:
      source: the old model's id.
      epoch, samples_total: where in its life the new model begins.
      changes: the settings that differ, a line each.
      tables: what becomes of each table.
      dense: what becomes of the dense parameters.
      record: epoch 0 of the new model.
    """

    source: str
    epoch: int
    samples_total: int
    changes: tuple[str, ...]
    tables: tuple[TableMove, ...]
    dense: DenseMove
    record: EpochRecord

    def summary(self) -> dict[str, Any]:
        """Plain data, as it stands in the new model's lineage; no arrays."""
        dense = {
            name: getattr(self.dense, name)
            for name in ("kept", "mapped", "begun", "dropped", "optimizer_begun")
        }
        return {
            "model_id": self.source,
            "epoch": self.epoch,
            "samples_total": self.samples_total,
            "changes": list(self.changes),
            "tables": [asdict(table) for table in self.tables],
            "dense": dense,
        }


def plan(job: Job, log: LogReader, epoch: int | None = None) -> Migration:
    """Works a migration out and writes nothing. Memory: the rows of the model, once.

    Args:
      job: the new one.
      log: the old model's.
      epoch: where to begin; default: its newest.

    Raises:
      ConfigError: there is nothing to migrate, or the two jobs cannot share what was learned.
      EpochMissing, CorruptRecord, LogError: the old model cannot be read as of that epoch.
    """
    before = parse_job(dict(log.model.job), str(log.path / "model.json"))
    changes = tuple(
        f"{path}: {_show(was)} -> {_show(now)}"
        for path, was, now in differences(job, log.model.job, str(log.path))
    )
    if not changes:
        raise ConfigError(
            f"the log at {log.path} holds this very model: there is nothing to migrate; `streamtrain run` it with "
            f"log.path = {str(log.path)!r}"
        )
    _check_shared(before, job)
    begins = _epoch(log, epoch)
    notes = _notes(log, begins)
    folded = restored(log, _folded, upto=begins)
    tables: dict[str, TableRows] = {}
    moves: list[TableMove] = []
    for name in [*job.tables, *(name for name in before.tables if name not in job.tables)]:
        rows = folded.tables.get(name)
        move, carried = _move_table(name, rows, before, job, folded.step_next - 1)
        moves.append(move)
        if carried is not None:
            tables[name] = carried
    filtered = _same_admission(before, job)
    had = {*folded.filters, *(name.partition("/")[0] for name in folded.rules)}
    moves = [
        replace(move, filter="kept" if move.table in filtered else "begun")
        if move.table in had and move.table in job.tables
        else move
        for move in moves
    ]
    dense = moved(folded.dense, before, job)
    record = replace(
        folded,
        epoch=0,
        previous="",
        step_first=folded.step_next,
        samples=0,
        tables=tables,
        filters={name: of for name, of in folded.filters.items() if name in filtered},
        rules={name: of for name, of in folded.rules.items() if name.partition("/")[0] in filtered},
        dense=dense.arrays,
        event_time_ms=None,
        record_time_ms=None,
        notes=dict(notes),
    )
    return Migration(
        log.model.model_id, folded.epoch, folded.samples_total, changes, tuple(moves), dense, record
    )


def migrate(
    job: Job, log: LogReader, migration: Migration, writer: str, files: Files | None = None
) -> EpochLog:
    """Makes the new log, whole or not at all.

    Args:
      job: its `log.path` must not be there yet.
      log: the old model's.
      migration: from `plan` of the same job and log.
      writer: who does it; informative.

    Raises:
      LogError: there is something at `log.path`, or it cannot be written.
    """
    path, files = Path(job.log.path).absolute(), files or Files()
    if path.exists():
        raise LogError(
            f"{path} is there already; set log.path to a directory that the migrated model is to have"
        )
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    lineage = (*log.model.migrated, migration.summary() | {"at_ms": time.time_ns() // 1_000_000})
    try:
        made = EpochLog.create(aside, job.name, job.describe(), files, migrated=lineage)
        made.append(replace(migration.record, committed_at_ms=time.time_ns() // 1_000_000, writer=writer))
        with typed_errors("put the migrated log in place at", path):
            # A daemon that found the log before its epoch 0 would begin a model that knows nothing.
            files.rename(aside, path)
            files.sync_directory(path.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return EpochLog.open(path, files)


def _check_shared(before: Job, after: Job) -> None:
    if before.sample_schema.labels != after.sample_schema.labels:
        raise ConfigError(
            f"schema.labels: {list(before.sample_schema.labels)} cannot become {list(after.sample_schema.labels)}: every "
            "parameter was learned for the labels that there were; begin a new model"
        )
    for key in ("kind", "topic", "paths"):
        was, now = getattr(before.source, key, None), getattr(after.source, key, None)
        if was != now:
            raise ConfigError(
                f"source.{key}: the model's positions are of {_show(was)} and mean nothing in {_show(now)}: migrate with "
                "the same source, and change it in a step of its own"
            )


def _epoch(log: LogReader, epoch: int | None) -> int:
    head = log.head()
    if head is None:
        raise EpochMissing(f"{log.path} is empty: there is nothing to migrate, begin a new model")
    if epoch is not None and not 0 <= epoch <= head:
        epochs = log.epochs()
        kept = f"epochs {epochs[0]} to {head}" if epochs else f"a base of epoch {head} alone"
        raise EpochMissing(f"{log.path} has no epoch {epoch}; it has {kept}: choose one of these (--epoch)")
    return head if epoch is None else epoch


def _same_admission(before: Job, after: Job) -> set[str]:
    """The tables whose ids go on waiting for admission where they stood. A filter's places are hashes with the seed."""
    both = {name for name in after.tables if name in before.tables and before.seed == after.seed}
    return {
        name
        for name in both
        if isinstance(was := before.tables[name], TableSettings)
        and isinstance(now := after.tables[name], TableSettings)
        and was.admission == now.admission
    }


def _move_table(
    name: str, rows: TableRows | None, old: Job, new: Job, step: int
) -> tuple[TableMove, TableRows | None]:
    before, after = old.tables.get(name), new.tables.get(name)
    count = 0 if rows is None else len(rows.ids)
    if after is None:
        return TableMove(name, "dropped", 0, count), None
    if before is None:
        return TableMove(name, "new", 0, 0), None
    if not keeps_rows(before, after, same_seed=old.seed == new.seed):
        return TableMove(name, "begun", 0, count), None
    if rows is None:
        return TableMove(name, "kept", 0, 0), None
    carried = carried_over(name, rows, before, after, new.seed, step)
    return TableMove(name, "kept" if carried is rows else "changed", count, 0), carried


def _folded(records: Iterator[EpochRecord]) -> EpochRecord:
    """The records as one, with its rows in memory; only so many files are open at a time."""
    record = next(records)
    while more := [*islice(records, SOURCES_MAX - 1)]:
        folded = fold_records([record, *more], "")
        tensors = format.tensors(folded.record) | {name: _whole(of) for name, of in folded.rows.items()}
        record = format.decode(format.document(folded.record, "base", ""), tensors)
    return record


def _whole(tensor: np.ndarray | Stream) -> np.ndarray:
    if isinstance(tensor, np.ndarray):
        return tensor
    whole, at = np.empty(tensor.shape, tensor.dtype), 0
    for piece in tensor.chunks():
        whole[at : at + len(piece)] = piece
        at += len(piece)
    return whole


def _notes(log: LogReader, epoch: int) -> Mapping[str, str]:
    """What an epoch's record says of its positions: of which topic they are, and what was lost. A base does not say it."""
    epochs = log.epochs()
    if epochs and epoch < epochs[0]:
        raise EpochMissing(
            f"{log.path} has no record of epoch {epoch} any more, only a base, which does not say of which topic its "
            f"positions are: migrate from epoch {epochs[0]} or a later one (--epoch)"
        )
    return log.describe(epoch).notes


def _show(value: Any) -> str:
    return "nothing" if value is None else repr(value)
