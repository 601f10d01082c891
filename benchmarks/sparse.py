"""Samples a second through SparseNet: forward and backward of minibatches over a large table, dense half left out.

    python -m benchmarks.sparse [--rows 10000000] [--slots 23] [--dim 18] [--batch 5000] [--optimizer adagrad] [--json]

Ids of a slot are log-uniform (Zipf with exponent 1) over the slot's share of the rows, so that a minibatch holds both
rows that every cache knows and rows that none does. The table is filled before. Prints medians of wall time, and of
the processor time of the thread, which a busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
from pydantic import TypeAdapter

from streamtrain.layout import Layout
from streamtrain.samples.batch import Ragged, SampleBatch
from streamtrain.samples.schema import Schema, SparseSlot
from streamtrain.sparse.dynamic import DynamicTable
from streamtrain.sparse.net import SparseNet
from streamtrain.sparse.settings import AnyOptimizer, TableSettings

FILL_ROWS = 1 << 20


def feature_ids(ordinals: np.ndarray) -> np.ndarray:
    """Distinct, well mixed ids of distinct ordinals, as hashing would give."""
    mixed = (ordinals.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)


def random_batch(random: np.random.Generator, slots: int, size: int, rows: int) -> SampleBatch:
    """One id a slot and sample."""
    share, offsets = rows // slots, np.arange(size + 1, dtype=np.int64)
    ids = {}
    for slot in range(slots):
        ranks = np.minimum(share ** random.random(size), share - 1).astype(np.int64)
        ids[f"slot_{slot}"] = Ragged(feature_ids(ranks + slot * share), offsets)
    empty = np.zeros((size, 0), np.float32)
    times = np.zeros(size, np.int64)
    return SampleBatch(
        size, ids, empty, np.zeros((size, 1), np.float32), np.ones(size, np.float32), times, times
    )


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall seconds and the thread's processor seconds."""
    wall, processor = time.perf_counter(), time.thread_time()
    work()
    return time.perf_counter() - wall, time.thread_time() - processor


def measure(options: argparse.Namespace) -> dict[str, float]:
    schema = Schema(labels=["y"], slots={f"slot_{slot}": SparseSlot() for slot in range(options.slots)})
    layout = Layout.of(schema, {"t": options.dim})
    optimizer = TypeAdapter(AnyOptimizer).validate_python({"kind": options.optimizer})
    settings = TableSettings(dim=options.dim, optimizer=optimizer, rows_max=2 * options.rows)
    net = SparseNet(layout, {"t": settings}, seed=1)
    net.warm_up()
    table = net.tables["t"]
    assert isinstance(table, DynamicTable)

    def fill() -> None:
        for first in range(0, options.rows, FILL_ROWS):
            ordinals = np.arange(first, min(first + FILL_ROWS, options.rows))
            table.rows.find_or_insert(feature_ids(ordinals))

    fill_s, _ = timed(fill)
    random = np.random.default_rng(0)
    gradients = random.standard_normal((options.batch, layout.pooled_width), np.float32)
    times: dict[str, list[tuple[float, float]]] = {"forward": [], "backward": []}
    for step in range(options.steps + 3):
        batch = random_batch(random, options.slots, options.batch, options.rows)
        forward = timed(lambda: net.forward(batch, step, options.batch))  # noqa: B023
        backward = timed(lambda: net.backward(gradients, {}, step))  # noqa: B023
        if step >= 3:  # The first ones touch memory for the first time.
            times["forward"].append(forward)
            times["backward"].append(backward)
    changed = 0

    def cut() -> None:
        nonlocal changed
        changed = len(net.cut()["t"].ids)

    cut_s, _ = timed(cut)
    results: dict[str, float] = {
        "rows": net.rows("t"),
        "bytes_per_row": net.memory_bytes("t") / net.rows("t"),
    }
    results |= {"insert_rows_per_s": options.rows / fill_s, "cut_rows_per_s": changed / cut_s}
    for name, pairs in times.items():
        results[f"{name}_ms"] = 1e3 * statistics.median(wall for wall, _ in pairs)
        results[f"{name}_processor_ms"] = 1e3 * statistics.median(processor for _, processor in pairs)
    results["samples_per_s"] = options.batch / 1e-3 / (results["forward_ms"] + results["backward_ms"])
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", type=int, default=10_000_000, help="rows in the table (default: %(default)s)"
    )
    parser.add_argument("--slots", type=int, default=23, help="slots of one id (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=18, help="floats a row (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=5000, help="samples a minibatch (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="minibatches timed (default: %(default)s)")
    parser.add_argument("--optimizer", default="adagrad", help="row optimizer (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    results = measure(options)
    if options.json:
        json.dump(results, sys.stdout)
        print()
        return
    for name, value in results.items():
        print(f"{name:>24} {value:>16,.2f}")


if __name__ == "__main__":
    main()
