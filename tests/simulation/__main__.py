"""`python -m tests.simulation --seeds N --start S [--json] [--trace]`: runs worlds on every core; fails with the first seeds that fail."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice

from tests.simulation.runner import pin, run_chunk, run_seeds
from tests.simulation.world import Outcome

_CHUNK_SEEDS = 50
_TRACES_SHOWN_MAX = 3


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, metavar="N", help="how many worlds")
    parser.add_argument("--start", type=int, default=0, metavar="S", help="the first one's seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="J", help="processes")
    parser.add_argument(
        "--mutation", metavar="NAME", help="with a fault put into the product: see mutations.py"
    )
    parser.add_argument("--trace", action="store_true", help="print every world's whole story")
    parser.add_argument("--json", action="store_true", help="print one line of JSON, traces on stderr")
    options = parser.parse_args()
    begin = time.perf_counter()
    totals: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    failed: list[int] = []
    for outcome in _outcomes(options):
        totals.update(seeds=1, epochs=outcome.epochs, samples=outcome.samples, switches=outcome.switches)
        faults.update(outcome.faults)
        if outcome.failure is not None:
            failed.append(outcome.seed)
        if options.trace or (outcome.failure is not None and len(failed) <= _TRACES_SHOWN_MAX):
            print(outcome.text(), file=sys.stderr if options.json else sys.stdout)
    seconds = time.perf_counter() - begin
    report = {
        **totals,
        "faults": dict(faults.most_common()),
        "failed": failed,
        "seconds": round(seconds, 1),
        "seeds_per_s": round(options.seeds / seconds, 1),
    }
    print(
        json.dumps(report)
        if options.json
        else "\n".join(f"{name}: {value}" for name, value in report.items())
    )
    return 1 if failed else 0


def _outcomes(options: argparse.Namespace) -> Iterator[Outcome]:
    seeds = iter(range(options.start, options.start + options.seeds))
    chunks = iter(lambda: list(islice(seeds, _CHUNK_SEEDS)), [])
    if options.jobs == 1 or options.seeds <= _CHUNK_SEEDS:
        for chunk in chunks:
            yield from run_seeds(chunk, options.mutation)
        return
    # Spawned: a process with threads must not be forked.
    cores = sorted(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    for core in cores:
        queue.put(core)
    work = [(chunk, options.mutation) for chunk in chunks]
    with context.Pool(min(options.jobs, len(cores)), pin, (queue,)) as pool:
        for outcomes in pool.imap(run_chunk, work):
            yield from outcomes


if __name__ == "__main__":
    sys.exit(main())
