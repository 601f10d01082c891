"""Folding beside training: how much memory a fold takes, how long it takes, and what a step notices of it.

    python -m benchmarks.fold [--rows 1000000 4000000] [--epochs 60] [--changed 20000] [--json]

A log with a base of so many rows (dim 8, Adagrad: 80 bytes a row) and epochs after it, each of which changes rows and
removes a tenth as many; `python -m streamtrain.log.fold` folds it into the next base in a process of its own, as the daemon has it.

How to read it: `anonymous_mb` is the peak of memory that only the process's end gives back (RssAnon of
/proc/PID/status, looked at every 5 ms): the bound that matters. `resident_mb` (VmHWM) counts the pages of mapped files
too, which the system drops when it wants them. `idle_mb` is what the interpreter and its libraries take before any row.
`gap_*_ms` is the longest pause between two turns of a thread that takes steps of 5 ms CPU, alone and while the fold runs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import FOLDER, machine, tell
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.fold import fold
from streamtrain.log.record import EpochRecord, TableRows

__all__ = ["fill"]

DIM = 8
_STEP_S = 0.005
_ALONE_S = 2.0


def fill(log: EpochLog, rows: int, epochs: int, changed: int) -> None:
    """A base of `rows` rows at epoch 1, and `epochs` epochs after it, each with `changed` rows, a tenth new ones.

    Ids are random 64-bit numbers, as hashing makes them.
    """
    random = np.random.default_rng(0)
    ids = random.integers(0, 2**64, rows + epochs * changed, np.uint64)
    digest = log.append(_record(0, "", TableRows.empty(DIM, DIM)))
    digest = log.append(_record(1, digest, _rows(ids[:rows], np.empty(0, np.uint64))))
    fold(log.path)
    fresh = rows
    for epoch in range(2, epochs + 2):
        drawn = np.unique(ids[random.integers(0, rows, changed)])
        removed, written = drawn[: len(drawn) // 10], drawn[len(drawn) // 10 :]
        written = np.concatenate([written, ids[fresh : fresh + changed // 10]])
        fresh += changed // 10
        digest = log.append(_record(epoch, digest, _rows(random.permutation(written), removed)))


def _rows(ids: np.ndarray, tombstones: np.ndarray) -> TableRows:
    shape = (len(ids), DIM)
    weights, slots = np.full(shape, 0.5, np.float32), np.full(shape, 0.25, np.float32)
    ones = np.ones(len(ids), np.uint32)
    return TableRows(ids, weights, slots, ones, ones, tombstones)


def _record(epoch: int, previous: str, rows: TableRows) -> EpochRecord:
    return EpochRecord(epoch, previous, epoch, epoch + 1, 1, epoch + 1, {}, {"ids": rows}, {}, {})


def measure(rows: int, epochs: int, changed: int) -> dict[str, Any]:
    """Folds one log; the log is removed afterwards."""
    path = FOLDER / f"fold-{rows}"
    shutil.rmtree(path, ignore_errors=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    try:
        log = EpochLog.create(path, "fold", {})
        fill(log, rows, epochs, changed)
        alone_s = _longest_gap(time.monotonic() + _ALONE_S, lambda: None)
        return {"rows": rows} | _fold(log, alone_s)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _fold(log: EpochLog, alone_s: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "streamtrain.log.fold", str(log.path), "--keep", "1", "--nice", "10"]
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    peaks: dict[str, int] = {}

    def look() -> bool:
        peaks.update({key: max(value, peaks.get(key, 0)) for key, value in _status(process.pid).items()})
        return process.poll() is not None

    gap_s = _longest_gap(float("inf"), look)
    told = json.loads(process.communicate()[0])
    if process.returncode:
        raise RuntimeError(f"the fold ended with {process.returncode}")
    return {
        "seconds": round(time.monotonic() - begin, 2),
        "anonymous_mb": round(peaks["RssAnon"] / 1e3, 1),
        "resident_mb": round(peaks["VmHWM"] / 1e3, 1),
        "idle_mb": round(_idle_kb() / 1e3, 1),
        "base_mb": round(log.base_path(told["base"]).stat().st_size / 1e6, 1),
        "removed_files": told["removed"],
        "gap_alone_ms": round(alone_s * 1e3, 1),
        "gap_with_fold_ms": round(gap_s * 1e3, 1),
    }


def _longest_gap(until: float, look: Callable[[], bool | None]) -> float:
    """Takes steps until `until`, or until `look` says so; the longest time from one step's begin to the next."""
    longest, last = 0.0, time.monotonic()
    weights = np.ones(1000)
    while last < until and not look():
        end = time.thread_time() + _STEP_S
        while time.thread_time() < end:
            weights *= 1.0
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    return longest


def _status(pid: int) -> dict[str, int]:
    """RssAnon and VmHWM in kB; nothing of a process that has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    fields = (line.split() for line in text.splitlines())
    return {line[0].rstrip(":"): int(line[1]) for line in fields if line[0] in ("RssAnon:", "VmHWM:")}


def _idle_kb() -> int:
    code = "import streamtrain.log.fold; print(open('/proc/self/status').read())"
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("RssAnon:"))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fold", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 4_000_000])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--changed", type=int, default=20_000, help="rows that an epoch changes")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    folds = [measure(rows, options.epochs, options.changed) for rows in options.rows]
    tell({"machine": machine(), "folds": folds}, options.json)


if __name__ == "__main__":
    main()
