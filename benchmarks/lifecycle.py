"""What admission and expiry cost and save: rows kept, memory, AUC and samples a second.

    python -m benchmarks.lifecycle [--ids 50000000] [--rules none bloom ...] [--rounds 3] [--json]

Stream: samples of 8 ids, learned without Kafka or a log. Half of the ids are one-time ids; the others are Zipf (exponent
1) over a head of `ids / 50` at a time, each of which is replaced by a new one twice during the stream. Only the head
decides labels. Every rule is a process of its own; memory is its peak. An epoch is cut each 100 steps.

KuaiRand: `examples/kuairand.toml` with each admission rule, one pass; the rules take turns for `--rounds` rounds, so that a
machine that slows down slows all of them. The cost is the median of each round's ratio of processor time to `none`, which
a busy machine disturbs less than wall time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import data, machine, parser_of, tell
from benchmarks.sparse import feature_ids
from streamtrain.config import parse_job
from streamtrain.evaluation import evaluate
from streamtrain.samples.batch import Ragged, SampleBatch
from streamtrain.training.learner import Learner

SLOTS, BATCH, CUT_STEPS, REPLACED = 8, 5000, 100, 2
MIB = 1 << 20

EXPIRY = {"after_steps": 300, "sweep_steps": 500}


def rules(ids: int) -> dict[str, dict[str, Any]]:
    """What each variant sets of the table."""
    bloom = {
        "kind": "counting_bloom",
        "threshold": 2,
        "expected_ids": max(ids // 10, 1000),
        "error": 0.02,
        "halve_every_steps": 200,
    }
    return {
        "none": {},
        "count": {"admission": {"kind": "count", "threshold": 2, "ids_max": max(ids // 10, 1000)}},
        "counting_bloom": {"admission": bloom},
        "probability": {"admission": {"kind": "probability", "p": 0.3}},
        "none + expiry": {"expiry": EXPIRY},
        "counting_bloom + expiry": {"admission": bloom, "expiry": EXPIRY},
    }


class Stream:
    """The samples of a stream, minibatch by minibatch; the same for every rule."""

    def __init__(self, ids: int) -> None:
        self._head = max(ids // 50, 1000)
        self._tail = ids - (REPLACED + 1) * self._head
        self.steps = 2 * self._tail // (SLOTS * BATCH)
        self._random = np.random.default_rng(0)
        self._offsets = np.arange(BATCH + 1, dtype=np.int64)

    def batch(self, step: int) -> SampleBatch:
        """Minibatch number `step`, in order."""
        shape = (SLOTS, BATCH)
        ranks = np.minimum(self._head ** self._random.random(shape), self._head - 1).astype(np.int64)
        # Each rank's id is replaced at another time.
        lives = (REPLACED * step / self.steps + ranks * 0.6180339887 % 1).astype(np.int64)
        once = self._random.random(shape) < 0.5
        first = (REPLACED + 2) * self._head + step * SLOTS * BATCH
        ordinals = np.where(once, first + np.arange(SLOTS * BATCH).reshape(shape), ranks + lives * self._head)
        values = feature_ids(ordinals)
        effects = (values >> np.uint64(40)).astype(np.float64) / 2**23 - 1
        logits = -1 + 1.2 * np.where(once, 0, effects).sum(axis=0)
        labels = self._random.random(BATCH) < 1 / (1 + np.exp(-logits))
        times = np.zeros(BATCH, np.int64)
        return SampleBatch(
            BATCH,
            {f"slot_{slot}": Ragged(values[slot], self._offsets) for slot in range(SLOTS)},
            np.zeros((BATCH, 0), np.float32),
            labels.astype(np.float32)[:, None],
            np.ones(BATCH, np.float32),
            times,
            times,
        )


def run_stream(rule: str, ids: int) -> dict[str, float]:
    """Learns the whole stream with one rule, in this process."""
    table = {"dim": 8, "rows_max": 2 * ids, "optimizer": {"kind": "adagrad"}} | rules(ids)[rule]
    job = parse_job(
        {
            "name": "lifecycle",
            "source": {"kind": "files", "paths": ["unread.parquet"]},
            "schema": {"labels": ["y"], "slots": {f"slot_{slot}": {} for slot in range(SLOTS)}},
            "tables": {"main": table},
            "model": {"kind": "mlp", "hidden": [16]},
            "training": {"batch_size": BATCH},
            "log": {"path": "unwritten"},
        },
        "benchmarks.lifecycle",
    )
    learner, stream = Learner.warm(job), Stream(ids)
    before_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    logits, labels = np.empty((stream.steps, BATCH), np.float32), np.empty((stream.steps, BATCH), np.float32)
    wall_s = processor_s = 0.0
    rows_most = committed = filtered = 0
    for step in range(stream.steps):
        batch = stream.batch(step)
        begin, used = time.perf_counter(), time.process_time()
        scored = learner.step(batch, step)
        cut = (learner.sparse.cut(), learner.sparse.cut_filters()[0]) if step % CUT_STEPS == 0 else None
        wall_s, processor_s = wall_s + time.perf_counter() - begin, processor_s + time.process_time() - used
        assert scored is not None
        logits[step], labels[step] = scored[:, 0], batch.labels[:, 0]
        rows_most = max(rows_most, learner.sparse.rows("main"))
        if cut is not None:
            committed += len(cut[0]["main"].ids)
            filtered += sum(part.values.nbytes + part.ids.nbytes for part in cut[1].values())
    half = stream.steps // 2
    samples = stream.steps * BATCH
    return {
        "samples": samples,
        "rows": learner.sparse.rows("main"),
        "rows_most": rows_most,
        "table_mib": round(learner.sparse.memory_bytes("main") / MIB),
        "process_mib_above_start": round(
            (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before_bytes - logits.nbytes * 2)
            / MIB
        ),
        "rows_committed": committed,
        "filter_mib_committed": round(filtered / MIB, 1),
        "auc_second_half": round(auc(logits[half:].ravel(), labels[half:].ravel()), 4),
        "samples_per_s": round(samples / wall_s),
        "samples_per_processor_s": round(samples / processor_s),
    }


def auc(scores: NDArray[np.float32], labels: NDArray[np.float32]) -> float:
    """Area under the ROC curve (Mann and Whitney's U), ties in the order of the samples."""
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores, kind="stable")] = np.arange(1, len(scores) + 1)
    positives = labels.sum(dtype=np.float64)
    return float(
        (ranks[labels > 0].sum() - positives * (positives + 1) / 2) / (positives * (len(labels) - positives))
    )


def kuairand(rounds: int) -> dict[str, Any]:
    """AUC and throughput of each admission rule."""
    samples = data()
    if samples.name != "kuairand":
        return {"skipped": "KuaiRand is not there: set KUAIRAND_DIR to its folder"}
    admissions: Mapping[str, dict[str, Any]] = {
        "none": {"kind": "none"},
        "count": {"kind": "count", "threshold": 2},
        "counting_bloom": {"kind": "counting_bloom", "threshold": 2, "expected_ids": 50_000},
        "probability": {"kind": "probability", "p": 0.5},
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in admissions}
    for _ in range(rounds):
        for name, admission in admissions.items():
            example = tomllib.loads(samples.config.read_text(encoding="utf-8"))
            example["source"]["paths"] = [str(samples.parquet)]
            example["tables"]["main"]["admission"] = admission
            begin = time.process_time()
            result = asyncio.run(evaluate(parse_job(example, "benchmarks.lifecycle"))).as_dict()
            found[name].append(result | {"processor_s": time.process_time() - begin})
    return {
        name: {
            "auc": round(results[0]["auc"], 4),
            "auc_second_half": round(results[0]["auc_second_half"], 4),
            "auc_less_than_none": round(found["none"][0]["auc"] - results[0]["auc"], 4),
            "samples_per_s": round(statistics.median(result["samples_per_s"] for result in results)),
            "processor_s_over_none": round(
                statistics.median(
                    ours["processor_s"] / theirs["processor_s"]
                    for ours, theirs in zip(results, found["none"], strict=True)
                ),
                3,
            ),
        }
        for name, results in found.items()
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that was asked for."""
    result: dict[str, Any] = {"ids": options.ids, "stream": {}}
    for rule in options.rules:
        command = [sys.executable, "-m", "benchmarks.lifecycle", "--ids", str(options.ids), "--only", rule]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            raise SystemExit(f"{rule} failed:\n{run.stderr}")
        result["stream"][rule] = json.loads(run.stdout)
        sys.stderr.write(f"{rule}: {run.stdout}")
    if options.rounds:
        result["kuairand"] = kuairand(options.rounds)
    return result | {"machine": machine()}


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = parser_of("lifecycle", __doc__)
    parser.add_argument("--ids", type=int, default=50_000_000, help="distinct ids (default: %(default)s)")
    parser.add_argument(
        "--rules", nargs="*", choices=list(rules(1)), default=list(rules(1)), help="default: all"
    )
    parser.add_argument("--rounds", type=int, default=3, help="passes over KuaiRand (default: %(default)s)")
    parser.add_argument("--only", choices=list(rules(1)), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    options = options_of()
    if options.only:
        print(json.dumps(run_stream(options.only, options.ids)))
        return
    tell(measure(options), options.json)


if __name__ == "__main__":
    main()
