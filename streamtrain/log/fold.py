"""Folds an older base and the epochs since into a newer base, from files alone, beside training.

The daemon runs `python -m streamtrain.log.fold DIR` as a process of its own, so that folding takes neither the
trainer's interpreter nor its memory. A base depends on the records alone, not on the bases between: folding in one
go or by way of others gives the same bytes.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import orjson

from streamtrain.errors import CorruptRecord, EpochMissing, StreamtrainError
from streamtrain.log import container, format
from streamtrain.log.container import Stream
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.files import Files, typed_errors
from streamtrain.log.merge import gather
from streamtrain.log.ranges import merge_by_ranges
from streamtrain.log.reader import LogReader
from streamtrain.log.readers import Holding
from streamtrain.log.record import EpochRecord, FilterRows, SpanTable, TableRows

__all__ = ["SOURCES_MAX", "Folded", "fold", "fold_records", "refold_digest"]

logger = logging.getLogger(__name__)

_HOLDING = Holding()

# Each source keeps a file descriptor while it is folded; a process commonly has 1,024.
SOURCES_MAX = 512


@dataclass(frozen=True, slots=True)
class Folded:
    """A base that is ready to be written.

    Attributes:
      record: all of it but the rows.
      rows: the tensors of rows and filters, by their names in the file; made while they are written.
    """

    record: EpochRecord
    rows: dict[str, np.ndarray | Stream]


def fold(path: Path | str, upto: int | None = None, files: Files | None = None) -> int:
    """Writes the base of an epoch, unless it is there.

    Interrupted at any instant it leaves nothing; repeating it is safe, and so is doing it twice at once.

    Args:
      path: the log.
      upto: the epoch; the newest by default.

    Returns:
      The epoch of the base; a newer one where another process has folded that meanwhile.

    Raises:
      EpochMissing: the log is empty, or lacks an epoch on the way.
      CorruptRecord: of a file on the way; no base is made from it.
      LogFull, LogError: it cannot be written.
    """
    log = EpochLog.open(path, files)
    last = log.head() if upto is None else upto
    if last is None:
        raise EpochMissing(f"{log.path} is empty: there is nothing to fold")
    base = max((base for base in log.bases() if base <= last), default=-1)
    while base < last:
        step = min(base + SOURCES_MAX, last)
        try:
            folded = _fold_files(log, base, step, log.path / "tmp")
        except EpochMissing:
            # Another fold was faster, and has collected what is read here: its base is as good.
            if (newest := max(log.bases(), default=-1)) <= base:
                raise
            base = newest
            continue
        log.add_base(folded.record, folded.rows)
        logger.info("folded base %d from %s", step, f"base {base}" if base >= 0 else "epoch 0")
        base = step
    return base


def refold_digest(log: LogReader, base: int, upto: int) -> str:
    """The digest that the base of `upto` must have, from base `base` (-1: none) and the epochs since. Writes nothing.

    Raises: as `fold`.
    """
    folded = _fold_files(log, base, upto)
    named = format.tensors(folded.record) | folded.rows
    return container.write(format.document(folded.record, "base", log.model.model_id), named)


def _fold_files(log: LogReader, base: int, upto: int, directory: Path | None = None) -> Folded:
    records = [log.read_base(base)] if base >= 0 else []
    records += [log.read(epoch) for epoch in range(base + 1, upto + 1)]
    try:
        with typed_errors("fold", log.path):
            return fold_records(records, log.digest(upto), directory)
    except ValueError as error:
        raise CorruptRecord(f"{log.path}: epochs {base + 1} to {upto} do not fold: {error}") from error


def fold_records(records: Sequence[EpochRecord], digest: str, directory: Path | None = None) -> Folded:
    """Folds consecutive records, the first of which may be a base.

    Args:
      records: in order, at least one.
      digest: that of the last record's epoch: what the base stands for.
      directory: where nameless files of 16 bytes a row go; default: the system's for temporary files.

    Raises:
      OSError: no room for those files.
      ValueError: a table's width changes from one record to the next.
    """
    last = records[-1]
    record = replace(
        last,
        previous=digest,
        step_first=records[0].step_first,
        samples=last.samples_total,
        bad_samples=sum(record.bad_samples for record in records),
        quarantined_minibatches=sum(record.quarantined_minibatches for record in records),
        quarantined_samples=sum(record.quarantined_samples for record in records),
        restores=None,
        undone_samples=sum(record.undone_samples for record in records),
        event_time_ms=_range([record.event_time_ms for record in records]),
        record_time_ms=_range([record.record_time_ms for record in records]),
        tables={},
        filters={},
        spans=SpanTable(),
        notes={},
    )
    rows: dict[str, np.ndarray | Stream] = {}
    for table in sorted({table for record in records for table in record.tables}):
        parts = [record.tables[table] for record in records if table in record.tables]
        rows |= _fold_rows(f"tables/{table}", parts, ("weights", "slots", "counts", "last_steps"), directory)
    for table in sorted({table for record in records for table in record.filters}):
        filters = [record.filters[table] for record in records if table in record.filters]
        rows |= _fold_rows(f"filters/{table}", filters, ("values",), directory)
    return Folded(record, rows)


def _fold_rows(
    name: str,
    parts: Sequence[TableRows] | Sequence[FilterRows],
    columns: Sequence[str],
    directory: Path | None,
) -> dict[str, np.ndarray | Stream]:
    """The tensors of what remains, by name in the file."""
    ids, locations = merge_by_ranges([(part.ids, part.tombstones) for part in parts], directory)
    tensors: dict[str, np.ndarray | Stream] = {
        f"{name}/ids": ids,
        f"{name}/tombstones": np.empty(0, np.uint64),
    }
    for column in columns:
        arrays: list[np.ndarray] = [getattr(part, column) for part in parts]
        if len(widths := {array.shape[1:] for array in arrays}) > 1:
            raise ValueError(f"{name}/{column} has rows of different widths: {sorted(widths)}")
        shape = (len(ids), *arrays[0].shape[1:])
        tensors[f"{name}/{column}"] = Stream(arrays[0].dtype, shape, partial(gather, arrays, locations))
    return tensors


def _range(ranges: Sequence[tuple[int, int] | None]) -> tuple[int, int] | None:
    known = [one for one in ranges if one is not None]
    return (min(first for first, _ in known), max(last for _, last in known)) if known else None


def main(arguments: Sequence[str] | None = None, out: Callable[[str], object] = sys.stdout.write) -> int:
    """`python -m streamtrain.log.fold DIR`: folds, then collects where asked. One JSON line tells what was done."""
    parser = argparse.ArgumentParser(prog="python -m streamtrain.log.fold")
    parser.description = "Writes a base of the newest epoch, then removes epochs that nothing needs any more."
    parser.add_argument("dir", type=Path, help="the epoch log")
    parser.add_argument(
        "--keep", type=int, metavar="N", help="remove epochs older than N before the newest base"
    )
    parser.add_argument(
        "--protect",
        type=int,
        metavar="EPOCH",
        action="append",
        default=[],
        help="keep what follows it; may repeat",
    )
    parser.add_argument(
        "--reader-lease",
        type=float,
        metavar="S",
        default=_HOLDING.lease_s,
        help="a registered reader silent for longer holds nothing (default %(default)s)",
    )
    parser.add_argument(
        "--hold-max",
        type=int,
        metavar="N",
        default=_HOLDING.epochs_max,
        help="nor does one further than this behind the base (default %(default)s epochs)",
    )
    parser.add_argument("--nice", type=int, default=0, metavar="N", help="give way to other processes")
    options = parser.parse_args(arguments)
    os.nice(options.nice)
    try:
        base = fold(options.dir)
        log = EpochLog.open(options.dir)
        holding = Holding(options.reader_lease, options.hold_max)
        removed = 0 if options.keep is None else log.collect(options.keep, options.protect, holding)
    except StreamtrainError as error:
        logger.error("%s", error)
        return 1
    out(orjson.dumps({"base": base, "removed": removed}, option=orjson.OPT_APPEND_NEWLINE).decode())
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    sys.exit(main())
