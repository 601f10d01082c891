"""A table that grows and shrinks: the longest time that one batch of ids had to wait, and the memory of a row.

    python -m benchmarks.growth [--rows 20000000] [--keep 1000000] [--batch 4096] [--dim 8] [--json]

A table with Adagrad takes in batches of new ids up to `rows`; then batches of ids are removed down to `keep`, each as a step
of an expiry sweep does it: remove, then compact. A pause is what one batch took, in wall time and in processor time of the thread,
which a busy machine disturbs less. Memory of a row is private memory (RssAnon) above that of the empty process, by rows held.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from benchmarks.harness import machine, parser_of
from benchmarks.sparse import feature_ids
from streamtrain.sparse.settings import AnyInit, AnyOptimizer
from streamtrain.sparse.table import EmbeddingTable

__all__ = ["measure", "options_of", "pauses", "private_bytes"]

MARKS = 8
"""How often memory is weighed on the way up, and on the way down."""
BAR_MS = 50.0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs everything; see the module."""
    about = machine()
    table = EmbeddingTable(
        "growth",
        options.dim,
        init=TypeAdapter(AnyInit).validate_python({"kind": "constant", "value": 0.0}),
        seed=1,
        rows_max=2 * options.rows,
        optimizer=TypeAdapter(AnyOptimizer).validate_python({"kind": "adagrad"}),
    )
    table.rehearse()
    gc.collect()
    empty = private_bytes()
    memory: list[dict[str, float]] = []

    def weigh() -> None:
        memory.append(
            {
                "rows": len(table),
                "bytes_per_row": round((private_bytes() - empty) / max(len(table), 1), 1),
                "told": round(table.memory_bytes / max(len(table), 1), 1),
            }
        )

    def shrink(ids: np.ndarray) -> None:
        table.compact(table.remove(ids))
        # As a cut does once a second: it tells of the tombstones, and forgets them.
        if len(table) % (16 * options.batch) < options.batch:
            table.cut()

    grown = _through(table.find_or_insert, range(0, options.rows, options.batch), options, weigh)
    shrunk = _through(shrink, range(options.keep, options.rows, options.batch), options, weigh)
    longest = max(grown["longest_ms"], shrunk["longest_ms"])
    return {
        "longest_ms": longest,
        "longest_cpu_ms": max(grown["longest_cpu_ms"], shrunk["longest_cpu_ms"]),
        "bar_ms": BAR_MS,
        "rows": options.rows,
        "keep": options.keep,
        "batch": options.batch,
        "grow": grown,
        "shrink": shrunk,
        "memory": memory,
        "machine": about,
    }


def _through(
    work: Callable[[np.ndarray], object],
    starts: range,
    options: argparse.Namespace,
    weigh: Callable[[], None],
) -> dict[str, float]:
    walls, processor = np.empty(len(starts)), np.empty(len(starts))
    every = max(1, len(starts) // MARKS)
    for n, start in enumerate(starts):
        ids = feature_ids(np.arange(start, min(start + options.batch, options.rows)))
        wall, cpu = time.perf_counter(), time.thread_time()
        work(ids)
        walls[n], processor[n] = time.perf_counter() - wall, time.thread_time() - cpu
        if n % every == every - 1:
            weigh()
    return pauses(walls, processor)


def pauses(walls: np.ndarray, processor: np.ndarray) -> dict[str, float]:
    """Milliseconds of batches, from seconds."""
    return {
        "batches": len(walls),
        "longest_ms": round(1000 * float(walls.max()), 2),
        "longest_cpu_ms": round(1000 * float(processor.max()), 2),
        "p999_cpu_ms": round(1000 * float(np.quantile(processor, 0.999)), 2),
        "median_cpu_ms": round(1000 * float(np.median(processor)), 2),
        "cpu_s": round(float(processor.sum()), 2),
    }


def private_bytes() -> int:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None
    return 1024 * int(found[1])


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = parser_of("growth", __doc__)
    parser.add_argument("--rows", type=int, default=20_000_000, help="rows to grow to (default: %(default)s)")
    parser.add_argument(
        "--keep", type=int, default=1_000_000, help="rows to shrink to (default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=4096, help="ids at once (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=8, help="weights a row (default: %(default)s)")
    options = parser.parse_args(arguments)
    if not 1 <= options.batch <= options.keep < options.rows or options.dim < 1:
        parser.error("1 <= batch <= keep < rows, and dim >= 1")
    return options


def main() -> None:
    options = options_of()
    result = measure(options)
    sys.stdout.write(json.dumps(result, indent=None if options.json else 2) + "\n")


if __name__ == "__main__":
    main()
