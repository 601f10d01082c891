"""What hashed tables save and what they cost in AUC: dynamic, hash and multi-hash tables on the same samples.

    python -m benchmarks.hashing [--data kuairand tail] [--samples N] [--json]

One prequential pass a table over KuaiRand-Pure (`examples/kuairand.toml`), and over a synthetic stream with many tail ids:
200 thousand samples whose two ids are drawn from Zipf distributions with exponent 1.05, so that most ids come once or twice; each id
has an effect of its own on the click, a label is drawn from the logistic of their sum. Rows of hashed tables are shares of the
dynamic table's rows, which is why that one is measured first.

`bytes` is what a table holds in memory between epochs; `index_bytes` of it find rows: slots and ids of the index, or the byte a
row that says that it is there. `collided` is the share of ids that share all of their rows with another id, counted from the
ids of the data; `collided_estimated` is the same from the rows in use alone, which is what `inspect` and the metrics can know
(`-` where every row is in use, so that there is no more than a lower bound).

How to read it: differences of AUC below 0.0005 are noise of the seed.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.harness import FOLDER, data, machine, parser_of, tell
from streamtrain.config import parse_job
from streamtrain.evaluation import evaluate
from streamtrain.sparse.dynamic import DynamicTable
from streamtrain.sparse.hashed import HashedTable
from streamtrain.sparse.hashed_ids import RowIds
from streamtrain.sparse.tables import Hashing
from streamtrain.training.learner import Learner

__all__ = ["TAIL_JOB", "collided_share", "tail_samples", "variants"]

SHARES = (0.5, 0.1, 0.02)
"""Rows of hash tables, of the dynamic table's."""
PARTS_SHARES = (0.5, 0.1)
"""Rows of multi-hash tables in all, where they are as wide as the dynamic table's."""

TAIL_SAMPLES = 200_000
TAIL_IDS = 5_000_000
ZIPF = 1.05

TAIL_JOB: dict[str, Any] = {
    "name": "tail",
    "seed": 1,
    "schema": {"labels": ["click"], "slots": {"user": {}, "item": {}, "hour": {}}},
    "tables": {"main": {"dim": 8}},
    "model": {"kind": "mlp"},
    "training": {"batch_size": 64},
    "log": {"path": "build/tail/model"},
}


def tail_samples(samples: int, seed: int = 0) -> pa.Table:
    """The stream with many tail ids; see the module. The same for the same arguments."""
    random = np.random.default_rng(seed)
    logits = np.full(samples, -1.0)
    columns: dict[str, NDArray[Any]] = {}
    for name, weight in (("user", 1.0), ("item", 1.5)):
        # The inverse of the continuous Zipf distribution, cut at TAIL_IDS.
        top = 1 - TAIL_IDS ** (1 - ZIPF)
        ids = np.floor((1 - random.random(samples) * top) ** (1 / (1 - ZIPF))).astype(np.int64)
        effects = np.random.default_rng([seed, len(name), ord(name[0])]).normal(size=TAIL_IDS + 1)
        columns[name] = ids
        logits += weight * effects[np.minimum(ids, TAIL_IDS)]
    hour = np.arange(samples) * 24 // samples
    clicks = random.random(samples) < 1 / (1 + np.exp(-logits - 0.3 * np.sin(hour)))
    return pa.table(columns | {"hour": hour, "click": clicks.astype(np.int64)})


def variants(rows: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and settings of the tables to compare with a dynamic one of `rows` rows."""
    for share in SHARES:
        yield f"hash, {share:.0%} of the rows", {"kind": "hash", "rows": max(int(share * rows), 1)}
    for share in PARTS_SHARES:
        total, place = int(share * rows), f"{share:.0%} of the rows"
        for combine in ("add", "concat", "multiply"):
            # Rows of `concat` are half as wide, so there are twice as many.
            half = max(total if combine == "concat" else total // 2, 1)
            settings = {"kind": "multi_hash", "rows": half, "combine": combine}
            yield f"quotient_remainder, {combine}, {place}", settings
    yield f"2 hashes, add, {place}", {"kind": "multi_hash", "rows": max(total // 2, 1), "hashes": 2}
    # Where remainders are many, few ids share them, and the few quotients tell apart those that do.
    sizes = [max(total - total // 8, 1), max(total // 8, 1)]
    uneven = {"kind": "multi_hash", "rows": sizes, "combine": "multiply"}
    yield f"quotient_remainder 7:1, multiply, {place}", uneven


def collided_share(hashing: Hashing, seed: int, table: str, ids: NDArray[np.uint64]) -> float:
    """The share of `ids` (`[N]` uint64, distinct) that share all of their rows with another of them: counted."""
    row_ids = RowIds(hashing, seed, table).of(ids).reshape(len(ids), hashing.parts)
    _, inverse, counts = np.unique(row_ids, axis=0, return_inverse=True, return_counts=True)
    return float((counts[inverse.reshape(-1)] > 1).mean())


def measure_job(job: Mapping[str, Any]) -> dict[str, Any]:
    """One pass for each kind of the job's table `main`."""
    first, ids = _pass(job, "dynamic", {}, np.empty(0, np.uint64))
    lines = [first] + [_pass(job, name, settings, ids)[0] for name, settings in variants(len(ids))]
    for line in lines:
        line["bytes_saved"] = round(1 - line["bytes"] / first["bytes"], 4)
        line["auc_lost"] = round(first["auc"] - line["auc"], 4)
        line["auc"] = round(line["auc"], 4)
    return {"ids": len(ids), "tables": lines}


def _pass(
    job: Mapping[str, Any], name: str, settings: Mapping[str, Any], ids: NDArray[np.uint64]
) -> tuple[dict[str, Any], NDArray[np.uint64]]:
    """Measures one table; returns also the ids of its rows."""
    chosen = deepcopy(dict(job))
    chosen["tables"]["main"] |= settings
    parsed = parse_job(chosen, f"benchmarks.hashing, {name}")
    line: dict[str, Any] = {"table": name}
    row_ids: list[NDArray[np.uint64]] = []

    def look(learner: Learner) -> None:
        # What a daemon holds between epochs: without the marks of what changed.
        learner.sparse.cut()
        table = learner.sparse.tables["main"]
        assert isinstance(table, (DynamicTable, HashedTable))
        row_ids.append(table.export().ids)
        line.update(rows=len(table), bytes=table.memory_bytes, index_bytes=table.rows.index_bytes)
        estimated: float | None = 0.0
        if isinstance(table, HashedTable):
            found = table.collisions
            estimated = None if math.isinf(found.ids_error) else round(found.collided, 4)
        hashing = parsed.tables["main"].hashing
        counted = 0.0 if hashing is None else collided_share(hashing, parsed.seed, "main", ids)
        line.update(collided=round(counted, 4), collided_estimated=estimated)

    found = asyncio.run(evaluate(parsed, look=look)).as_dict()
    line.update(auc=found["auc"], samples_per_s=round(found["samples_per_s"]))
    return line, row_ids[0]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Both data sets, or those named; see the module."""
    about, found = machine(), dict[str, Any]()
    if "kuairand" in options.data:
        samples = data()
        if samples.name == "kuairand":
            example = tomllib.loads(samples.config.read_text(encoding="utf-8"))
            example["source"]["paths"] = [str(samples.parquet)]
            found["kuairand"] = {"samples": samples.samples} | measure_job(example)
        else:
            found["kuairand"] = {
                "skipped": "set KUAIRAND_DIR to its folder (the README says where to get it)"
            }
    if "tail" in options.data:
        FOLDER.mkdir(parents=True, exist_ok=True)
        path = FOLDER / f"tail-{options.samples}.parquet"
        pq.write_table(tail_samples(options.samples), path)
        job = TAIL_JOB | {"source": {"kind": "files", "paths": [str(path.absolute())]}}
        found["tail"] = {"samples": options.samples} | measure_job(job)
    return found | {"machine": about}


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = parser_of("hashing", __doc__)
    parser.add_argument(
        "--data", nargs="+", choices=["kuairand", "tail"], default=["kuairand", "tail"], help="default: both"
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=TAIL_SAMPLES,
        metavar="N",
        help="of the tail stream (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    if options.samples < 1:
        parser.error(f"--samples {options.samples}: must be at least 1")
    return options


def main() -> None:
    options = options_of()
    tell(measure(options), options.json)


if __name__ == "__main__":
    main()
