"""How the rate of a step and the memory of a row change with the number of rows, of slots, the dim and the batch size.

    python -m benchmarks.scaling [--rows 1 2 5 10 20 50] [--threads 2] [--steps 15] [--json]

The real Learner, as in `benchmarks.train_step`: 23 slots of one id, dim 18 with Adagrad, a tower of 200-80-1 with Adam, batches of
5000 heavy-tailed ids from memory. Rows (in millions) are those of one table that grows; the other three change one at a time,
with a million rows. Each point is the median of its steps: `samples_per_s` by wall time, `samples_per_core_s` by the processor
time of all threads, which a busy machine disturbs less.

`slope` is the exponent b of the fit samples_per_core_s ~ x^b (least squares of logarithms): 0 where the size does not matter,
-1 where twice the size takes twice the time. `memory_ratio` is the resident memory of a row, in the largest table, over its
payload of 4 (2 dim + 2) bytes; the bar is 1.3. In small tables the copies of a cut, which are kept, weigh more. That memory is private memory above that of the same process with a hundred
thousand rows, when it had taken steps: what a step needs whatever the number of rows is no row's. Points that would not fit into
the memory that is available are left out, and named under `left_out`.
"""

from __future__ import annotations

import argparse
import gc
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.growth import private_bytes
from benchmarks.harness import machine, parser_of, tell
from benchmarks.learner_step import job_of
from benchmarks.sparse import feature_ids, random_batch
from benchmarks.step_data import Work
from streamtrain.dense.compiled import keep_compiled
from streamtrain.sparse.crew import set_threads
from streamtrain.sparse.dynamic import DynamicTable
from streamtrain.training.learner import Learner

__all__ = ["measure", "options_of", "slope"]

BAR = 1.3
SLOTS, DIM, BATCH, ROWS = 23, 18, 5000, 1_000_000
AXES: dict[str, tuple[int, ...]] = {
    "slots": (6, 12, 23, 46, 92),
    "dim": (4, 8, 18, 32, 64),
    "batch": (64, 256, 1024, 5000, 20_000),
}
WARM_STEPS = 4
ROWS_BEFORE = 100_000
FILL_ROWS = 1 << 20
BYTES_SPARE = 2 << 30


class Point:
    """A learner at one size, which may be given more rows."""

    def __init__(self, work: Work) -> None:
        """Compiles everything; there are no rows yet."""
        self._work, self._random, self._step, self._filled = work, np.random.default_rng(0), 0, 0
        self._learner = Learner.warm(job_of(work))
        set_threads(work.threads)

    def fill(self, rows: int) -> None:
        """Inserts rows up to that many."""
        table = self._learner.sparse.tables["main"]
        assert isinstance(table, DynamicTable)
        for first in range(self._filled, rows, FILL_ROWS):
            table.rows.find_or_insert(feature_ids(np.arange(first, min(first + FILL_ROWS, rows))))
        self._filled = rows

    def rates(self, steps: int) -> dict[str, float]:
        """Samples a second, from `steps` steps."""
        walls, processor = [], []
        for step in range(WARM_STEPS + steps):
            batch = random_batch(self._random, self._work.slots, self._work.batch, self._filled)
            wall, cpu = time.perf_counter(), time.process_time()
            if self._learner.step(batch, self._step) is None:
                raise SystemExit(f"step {self._step} was quarantined")
            if step >= WARM_STEPS:
                walls.append(time.perf_counter() - wall)
                processor.append(time.process_time() - cpu)
            self._step += 1
        # As a daemon does once a second.
        self._learner.sparse.cut()
        size = self._work.batch
        return {
            "samples_per_s": round(size / statistics.median(walls)),
            "samples_per_core_s": round(size / statistics.median(processor)),
        }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs everything; see the module."""
    about = machine()
    result: dict[str, Any] = {}
    left_out: list[str] = []
    millions, payload = sorted(options.rows), 4 * (2 * DIM + 2)
    point = Point(Work(SLOTS, DIM, 1_000_000 * millions[-1], BATCH, 0, options.threads))
    point.fill(ROWS_BEFORE)
    point.rates(2)
    before, ratios = private_bytes(), []
    result["rows"] = []
    for million in millions:
        rows = 1_000_000 * million
        if 2 * payload * rows - (private_bytes() - before) > available_bytes() - BYTES_SPARE:
            left_out.append(f"{million} million rows")
            continue
        point.fill(rows)
        rates = point.rates(options.steps)
        a_row = (private_bytes() - before) / (rows - ROWS_BEFORE)
        ratios.append(a_row / payload)
        result["rows"].append({"rows": rows, **rates, "bytes_per_row": round(a_row, 1)})
    del point
    for axis, values in AXES.items():
        result[axis] = []
        for value in values:
            gc.collect()
            sizes = {"slots": SLOTS, "dim": DIM, "batch": BATCH} | {axis: value}
            other = Point(Work(rows=ROWS, steps=0, threads=options.threads, **sizes))
            other.fill(ROWS)
            result[axis].append({axis: value, **other.rates(options.steps)})
            del other
    result["slope"] = {axis: round(slope(result[axis], axis), 3) for axis in ("rows", *AXES)}
    return {
        "memory_ratio": round(ratios[-1], 3) if ratios else None,
        "bar": BAR,
        "payload_bytes": payload,
        "threads": options.threads,
        **result,
        "left_out": left_out,
        "machine": about,
    }


def slope(points: Sequence[Mapping[str, float]], axis: str) -> float:
    """The exponent of the power law that fits best; 0 for less than two points."""
    if len(points) < 2:
        return 0.0
    sizes = np.log([point[axis] for point in points])
    rates = np.log([point["samples_per_core_s"] for point in points])
    return float(np.polyfit(sizes, rates, 1)[0])


def available_bytes() -> int:
    """What the system can hand out without taking it from others."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    assert found is not None
    return 1024 * int(found[1])


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = parser_of("scaling", __doc__)
    parser.add_argument(
        "--rows",
        type=int,
        nargs="+",
        default=[1, 2, 5, 10, 20, 50],
        help="rows, in millions (default: %(default)s)",
    )
    parser.add_argument("--threads", type=int, default=2, help="training.threads (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=15, help="steps a point (default: %(default)s)")
    options = parser.parse_args(arguments)
    if min(options.rows) < 1 or options.threads < 1 or options.steps < 1:
        parser.error("rows, threads and steps are at least 1")
    return options


def main() -> None:
    options = options_of()
    keep_compiled("auto")
    tell(measure(options), options.json)


if __name__ == "__main__":
    main()
