"""`streamtrain inspect DIR --table T`: computes what was asked for, as JSON values. `inspect_text` lays them out."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.analysis.addressing import id_of, raw_id, slots_of_table
from streamtrain.analysis.admission import waiting
from streamtrain.analysis.collisions import collision_probability
from streamtrain.analysis.histogram import Histogram
from streamtrain.analysis.movers import movers
from streamtrain.analysis.ranking import Best, nearest, norms, top
from streamtrain.analysis.rates import rates
from streamtrain.analysis.sharing import collided_share, combined, hashing_of, row_ids
from streamtrain.analysis.snapshot import Snapshot, open_snapshot
from streamtrain.analysis.summary import summarise
from streamtrain.dictionary.reader import Dictionary
from streamtrain.dictionary.segments import VALUES
from streamtrain.errors import ConfigError
from streamtrain.log.reader import LogReader
from streamtrain.log.record import TableRows
from streamtrain.sparse.collisions import collisions, occupied
from streamtrain.sparse.tables import Hashing

__all__ = ["report"]

_QUANTILES = (0.1, 0.5, 0.9, 0.99)


def report(options: argparse.Namespace) -> dict[str, Any]:
    """What the options of `inspect --table` ask for.

    Returns:
      JSON values: `table`, `about` ("summary", "row", "top", "movers" or "file") and what belongs to that.

    Raises:
      ConfigError: the options do not fit the model.
      StreamtrainError: as `open_snapshot`; a file cannot be written.
    """
    log = LogReader.open(options.dir)
    about = "movers" if options.movers else "row" if options.id else "top" if options.sort else "summary"
    found: dict[str, Any] = {"model": log.model.name, "table": options.table, "about": about}
    if options.movers:
        return found | _movers(log, options)
    snapshot = open_snapshot(log, options.table, options.at)
    found |= {"epoch": snapshot.epoch, "step_next": snapshot.step_next}
    if options.csv or options.parquet:
        return found | {"about": "file", "files": _files(log, snapshot, options)}
    if options.id:
        return found | _row(log, snapshot, options)
    if options.sort:
        rows = top(snapshot, options.sort, options.top)
        return found | {
            "sort": options.sort,
            "rows": _lines(snapshot, rows, _dictionary_of_rows(log, options.table)),
        }
    return found | _summary(log, snapshot, options)


def _summary(log: LogReader, snapshot: Snapshot, options: argparse.Namespace) -> dict[str, Any]:
    summary = summarise(snapshot)
    history = rates(log, options.table, options.epochs, snapshot.epoch)
    if options.png:
        from streamtrain.analysis.picture import draw

        title = f"{log.model.name}: table {options.table} at epoch {snapshot.epoch}, {summary.rows:,} rows"
        draw(title, summary, history, Path(options.png))
    return {
        "samples": snapshot.samples_total,
        "rows": summary.rows,
        "dim": snapshot.dim,
        "optimizer_floats": snapshot.optimizer_floats,
        "bytes": summary.rows * snapshot.row_bytes,
        "frequency": _histogram(summary.frequency),
        "age": _histogram(summary.age),
        "norm": _histogram(summary.norm),
        "collisions": _collisions(log, snapshot),
        "admission": _admission(log, snapshot),
        "epochs": [{name: getattr(one, name) for name in one.__slots__} for one in reversed(history)],
        "png": options.png,
    }


def _admission(log: LogReader, snapshot: Snapshot) -> dict[str, Any] | None:
    if (found := waiting(log.model.job, snapshot)) is None:
        return None
    counts = None if found.counts is None else _histogram(found.counts)
    return {name: getattr(found, name) for name in found.__slots__} | {"counts": counts}


def _collisions(log: LogReader, snapshot: Snapshot) -> dict[str, Any]:
    """Of two values that have one id; where ids share rows, of ids that have the same ones."""
    if (hashing := hashing_of(log.model.job, snapshot.table)) is None:
        return {"kind": "hash64", "probability": collision_probability(len(snapshot))}
    found: dict[str, Any] = {"kind": "shared_rows"} | asdict(
        collisions(hashing, occupied(hashing, snapshot.ids))
    )
    # What the log does not tell, the values do that were written down: which ids there really are.
    if (dictionary := _dictionary(log, snapshot.table)) is not None:
        rows = row_ids(log.model.job, snapshot.table, hashing, dictionary.ids)
        found |= {"known_ids": len(rows), "known_collided": collided_share(rows)}
    return found


def _shared_row(
    log: LogReader, snapshot: Snapshot, options: argparse.Namespace, hashing: Hashing
) -> dict[str, Any]:
    """Of a table whose ids share rows: the rows of an id, and the vector that they make."""
    if options.nearest:
        raise ConfigError(
            f"--nearest: ids of table {options.table!r} share rows, and the log does not tell which ids there are"
        )
    number = _asked_id(log, options)
    wanted = row_ids(log.model.job, options.table, hashing, np.array([number], np.uint64))[0]
    places = snapshot.find(wanted)
    if (places < 0).all():
        raise _no_row(options, snapshot, number)
    rows = snapshot.pick(places[places >= 0])
    whole = len(rows.ids) == hashing.parts
    # A row that was never learned is as it was initialised, and not in the log.
    return {
        "id": number,
        "row_ids": wanted.tolist(),
        "rows": _lines(snapshot, rows, None),
        "vector": combined(hashing, rows).tolist() if whole else None,
    }


def _no_row(options: argparse.Namespace, snapshot: Snapshot, number: int) -> ConfigError:
    return ConfigError(
        f"table {options.table!r} has no row of id {number:#018x} at epoch {snapshot.epoch}: it was never learned, "
        "was not admitted, or has expired"
    )


def _row(log: LogReader, snapshot: Snapshot, options: argparse.Namespace) -> dict[str, Any]:
    if (hashing := hashing_of(log.model.job, options.table)) is not None:
        return _shared_row(log, snapshot, options, hashing)
    number = _asked_id(log, options)
    place = snapshot.find(np.array([number], np.uint64))
    if place[0] < 0:
        raise _no_row(options, snapshot, number)
    dictionary = _dictionary_of_rows(log, options.table)
    row = snapshot.pick(place)
    line = _lines(snapshot, row, dictionary)[0]
    found: dict[str, Any] = {
        "row": line | {"vector": row.weights[0].tolist(), "optimizer": row.slots[0].tolist()}
    }
    if options.nearest:
        near = nearest(snapshot, row.weights[0], options.nearest, options.by, number)
        lines = _lines(snapshot, snapshot.pick(snapshot.find(near.ids)), dictionary)
        pairs = zip(lines, near.cosines.tolist(), near.dots.tolist(), strict=True)
        found |= {"by": options.by, "nearest": [line | {"cosine": c, "dot": d} for line, c, d in pairs]}
    return found


def _asked_id(log: LogReader, options: argparse.Namespace) -> int:
    if options.slot is None:
        if len(options.id) > 1:
            raise ConfigError(
                "--id takes one id; several values make one only of a cross slot: add --slot NAME"
            )
        return raw_id(options.id[0])
    number = id_of(log.model.job, options.slot, options.id)
    if options.slot not in (slots := slots_of_table(log.model.job, options.table)):
        raise ConfigError(
            f"--slot {options.slot}: its table is not {options.table!r}, whose slots are: {', '.join(slots)}"
        )
    return number


def _movers(log: LogReader, options: argparse.Namespace) -> dict[str, Any]:
    earlier, later = (open_snapshot(log, options.table, epoch) for epoch in options.movers)
    found = movers(earlier, later, options.top)
    dictionary = _dictionary_of_rows(log, options.table)
    return {
        "from": earlier.epoch,
        "to": later.epoch,
        "moved": found.moved,
        "new": found.new,
        "removed": found.removed,
        "unchanged": found.unchanged,
        "distance": _histogram(found.distances),
        "farthest": _best(later, found.farthest, "distance", dictionary),
        "largest_new": _best(later, found.largest_new, "norm", dictionary),
        "largest_removed": _best(earlier, found.largest_removed, "norm", dictionary),
    }


def _best(snapshot: Snapshot, best: Best, score: str, dictionary: Dictionary | None) -> list[dict[str, Any]]:
    lines = _lines(snapshot, snapshot.pick(snapshot.find(best.ids)), dictionary)
    return [line | {score: number} for line, number in zip(lines, best.scores.tolist(), strict=True)]


def _files(log: LogReader, snapshot: Snapshot, options: argparse.Namespace) -> dict[str, int]:
    from streamtrain.analysis.files import write_csv, write_parquet

    dictionary = _dictionary_of_rows(log, options.table)
    written = {}
    if options.csv:
        written[options.csv] = write_csv(snapshot, Path(options.csv), dictionary)
    if options.parquet:
        written[options.parquet] = write_parquet(snapshot, Path(options.parquet), dictionary)
    return written


def _dictionary(log: LogReader, table: str) -> Dictionary | None:
    """The reverse dictionary of the table's slots; None where none of them has one."""
    if not (log.path / VALUES).is_dir():
        return None
    dictionary = Dictionary(log.path, slots_of_table(log.model.job, table)) if log.model.job else None
    return dictionary if dictionary is not None and dictionary.slots else None


def _dictionary_of_rows(log: LogReader, table: str) -> Dictionary | None:
    """As `_dictionary`, of a table whose rows are those of single ids: a shared row has no one value."""
    return None if hashing_of(log.model.job, table) is not None else _dictionary(log, table)


def _lines(snapshot: Snapshot, rows: TableRows, dictionary: Dictionary | None) -> list[dict[str, Any]]:
    columns: dict[str, NDArray[Any] | list[Any]] = {
        "id": rows.ids.tolist(),
        "count": rows.counts.tolist(),
        "last_step": rows.last_steps.tolist(),
        "age": snapshot.ages(rows.last_steps).tolist(),
        "norm": norms(rows.weights).tolist(),
    }
    if dictionary is not None:
        slots, values = dictionary.find(rows.ids)
        columns |= {"slot": slots.to_pylist(), "value": values.to_pylist()}
    return [dict(zip(columns, line, strict=True)) for line in zip(*columns.values(), strict=True)]


def _histogram(histogram: Histogram) -> dict[str, Any]:
    return {
        "min": histogram.minimum,
        "mean": histogram.mean,
        "max": histogram.maximum,
        "quantiles": {str(share): histogram.quantile(share) for share in _QUANTILES},
        "bars": [[bar.low, bar.high, bar.count] for bar in histogram.bars()],
    }
