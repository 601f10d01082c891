"""How long a cut stops the trainer, and how fast the log takes an epoch, against the disk itself.

    python -m benchmarks.cut [--rows 4000000] [--changed 500000] [--dim 18 8] [--rounds 10] [--threads 2] [--json]

A table of `rows` rows, of which `changed` random ones changed since the last cut. `pause_ms_per_500k_rows` is the wall time
of the cut, in which the trainer learns nothing, median over rounds; the first round, for which the system finds memory, is told
apart (`first_pause_ms`), as is the processor time, which a busy machine disturbs less. `log_mb_per_s`: an epoch of these
rows made durable by `EpochLog.append` (check sum, write, fsync, link, fsync of the folder); `disk_mb_per_s`: the same bytes
written to one file and fsynced, in turns with it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import FOLDER, machine, tell
from benchmarks.sparse import feature_ids
from streamtrain.layout import Layout
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.record import EpochRecord, TableRows
from streamtrain.samples.schema import Schema, SparseSlot
from streamtrain.sparse.crew import set_threads
from streamtrain.sparse.dynamic import DynamicTable
from streamtrain.sparse.net import SparseNet
from streamtrain.sparse.settings import TableSettings
from streamtrain.training.settings import TrainingSettings

__all__ = ["measure"]

_FILL_ROWS = 1 << 19
_MB = 1e6


def filled(rows: int, dim: int) -> SparseNet:
    """A net whose table `t` holds the rows of the first ordinals, Adagrad, nothing changed."""
    schema = Schema(labels=["y"], slots={"a": SparseSlot()})
    net = SparseNet(Layout.of(schema, {"t": dim}), {"t": TableSettings(dim=dim, rows_max=2 * rows)}, seed=1)
    net.warm_up()
    table = net.tables["t"]
    assert isinstance(table, DynamicTable)
    for first in range(0, rows, _FILL_ROWS):
        table.rows.find_or_insert(feature_ids(np.arange(first, min(first + _FILL_ROWS, rows))))
    net.cut()
    return net


def changed(rows: int, count: int, dim: int, random: np.random.Generator) -> TableRows:
    """New values of `count` of the rows."""
    ids = feature_ids(random.choice(rows, count, replace=False))
    values = random.standard_normal((count, dim), np.float32)
    return TableRows(ids, values, abs(values), np.ones(count, np.uint32), np.ones(count, np.uint32))


def measure(folder: Path, rows: int, count: int, dim: int, rounds: int) -> dict[str, Any]:
    """One table; see the module."""
    shutil.rmtree(folder, ignore_errors=True)
    net, random = filled(rows, dim), np.random.default_rng(0)
    log = EpochLog.create(folder / "log", "cut", {})
    previous = log.append(EpochRecord(0, "", 0, 0, 0, 0, {}, {}, {}, {}))
    pauses: list[tuple[float, float]] = []
    rates: dict[str, list[float]] = {"log": [], "disk": []}
    for epoch in range(1, rounds + 2):
        net.tables["t"].load(changed(rows, count, dim, random), dirty=True)
        wall, processor = time.perf_counter(), time.process_time()
        tables = net.cut()
        pauses.append((time.perf_counter() - wall, time.process_time() - processor))
        assert len(tables["t"].ids) == count
        record = EpochRecord(epoch, previous, epoch - 1, epoch, 0, 0, {}, tables, {}, {})
        seconds, previous = timed(lambda record=record: log.append(record))  # type: ignore[misc]
        # What stands in the file is in memory: nothing is read from the disk.
        data = log.epoch_path(epoch).read_bytes()
        rates["log"].append(len(data) / seconds / _MB)
        seconds, _ = timed(lambda data=data: written(folder / "plain", data))  # type: ignore[misc]
        rates["disk"].append(len(data) / seconds / _MB)
        log.epoch_path(epoch - 1).unlink()
    shutil.rmtree(folder)
    per = 1e3 * 500_000 / count
    later = pauses[1:]
    log_rate, disk_rate = (statistics.median(rates[name][1:]) for name in ("log", "disk"))
    return {
        "dim": dim,
        "changed_rows": count,
        "epoch_mb": round(len(data) / _MB, 1),
        "pause_ms_per_500k_rows": round(per * statistics.median(wall for wall, _ in later), 1),
        "pause_processor_ms_per_500k_rows": round(per * statistics.median(cpu for _, cpu in later), 1),
        "longest_pause_ms": round(1e3 * max(wall for wall, _ in later), 1),
        "first_pause_ms": round(1e3 * pauses[0][0], 1),
        "log_mb_per_s": round(log_rate),
        "disk_mb_per_s": round(disk_rate),
        "log_of_disk": round(log_rate / disk_rate, 2),
    }


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Wall seconds, and what the work gave."""
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def written(path: Path, data: bytes) -> None:
    """The disk's own: one file, one sync."""
    with path.open("wb", buffering=0) as file:
        file.write(data)
        os.fsync(file.fileno())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", type=int, default=4_000_000, help="rows in the table (default: %(default)s)"
    )
    parser.add_argument("--changed", type=int, default=500_000, help="rows a cut (default: %(default)s)")
    parser.add_argument("--dim", type=int, nargs="+", default=[18, 8], help="floats a row (default: 18 8)")
    parser.add_argument("--rounds", type=int, default=10, help="cuts (default: %(default)s)")
    parser.add_argument(
        "--threads",
        type=int,
        default=TrainingSettings().threads,
        help="that copy (default: %(default)s, as the daemon)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    set_threads(options.threads)
    result: dict[str, Any] = {"machine": machine()}
    for dim in options.dim:
        result[f"dim_{dim}"] = measure(FOLDER / "cut", options.rows, options.changed, dim, options.rounds)
    tell(result, options.json)


if __name__ == "__main__":
    main()
