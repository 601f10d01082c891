"""Our side of train_step: the real Learner on minibatches in memory, as the daemon's trainer thread drives it.

    python -m benchmarks.learner_step FOLDER

Quarantine, undo, dirty rows and prequential evaluation are on, as always. An epoch is cut after each round, outside the
clock, so that as many rows are dirty as in a daemon: `benchmarks.cut` measures cuts.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.rounds import serve
from benchmarks.step_data import (
    ADAGRAD_EPSILON,
    ADAM_LEARNING_RATE,
    HIDDEN,
    INITIAL_ACCUMULATOR,
    INITIAL_STD,
    ROW_LEARNING_RATE,
    StepData,
    Work,
    feature_ids,
    log_loss,
)
from streamtrain.config import Job, parse_job
from streamtrain.dense.compiled import keep_compiled
from streamtrain.samples.batch import Ragged, SampleBatch
from streamtrain.samples.minibatch import Minibatch
from streamtrain.sources import Span
from streamtrain.sparse.dynamic import DynamicTable
from streamtrain.training.learner import Learner

STAGES = {
    "forward": ("sparse", "forward"),
    "dense": ("dense", "step"),
    "backward": ("sparse", "backward"),
}
"""By name, the calls of `Learner.step` that make up nearly all of it: evaluation, and what can be prepared of the next, lie beside the last."""
_FILL_ROWS = 1 << 20
_PARTITION = "0"


def job_of(work: Work) -> Job:
    """The job that does the work."""
    return parse_job(
        {
            "name": "train_step",
            "seed": 1,
            "source": {"kind": "files", "paths": ["unused.parquet"]},
            "schema": {"labels": ["y"], "slots": {f"slot_{slot}": {} for slot in range(work.slots)}},
            "tables": {
                "main": {
                    "dim": work.dim,
                    "rows_max": 2 * work.rows,
                    "optimizer": {
                        "kind": "adagrad",
                        "learning_rate": ROW_LEARNING_RATE,
                        "initial_accumulator": INITIAL_ACCUMULATOR,
                        "epsilon": ADAGRAD_EPSILON,
                    },
                    "init": {"kind": "normal", "std": INITIAL_STD},
                }
            },
            "model": {"kind": "mlp", "hidden": list(HIDDEN)},
            "optimizer": {"kind": "adam", "learning_rate": ADAM_LEARNING_RATE},
            "training": {"batch_size": work.batch},
            "log": {"path": "unused"},
        },
        "train_step",
    )


def minibatches(data: StepData) -> list[Minibatch]:
    """The data as the daemon's decoder would hand it over."""
    size = data.work.batch
    offsets = np.arange(size + 1, dtype=np.int64)
    found = []
    for step in range(data.work.steps):
        ids = {
            f"slot_{slot}": Ragged(feature_ids(data.rows[step][:, slot]), offsets)
            for slot in range(data.work.slots)
        }
        labels = np.ascontiguousarray(data.labels[step][:, None])
        times = np.zeros(size, np.int64)
        batch = SampleBatch(
            size, ids, np.zeros((size, 0), np.float32), labels, np.ones(size, np.float32), times, times
        )
        found.append(Minibatch(batch, (Span(_PARTITION, step * size, (step + 1) * size, size),), (), 0.0))
    return found


class OurSteps:
    """Learns rounds and says where the time went."""

    def __init__(self, data: StepData) -> None:
        """Fills the table and compiles everything."""
        job = job_of(data.work)
        self._learner = Learner.warm(job)
        self._learner.restore([self._learner.genesis({_PARTITION: 0}, "files")], sequential=True)
        table = self._learner.sparse.tables["main"]
        assert isinstance(table, DynamicTable)
        for first in range(0, data.work.rows, _FILL_ROWS):
            table.rows.find_or_insert(feature_ids(np.arange(first, min(first + _FILL_ROWS, data.work.rows))))
        self._learner.cut()
        self._minibatches = minibatches(data)
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._logits: list[np.ndarray] = []
        for stage, (part, name) in STAGES.items():
            owner = getattr(self._learner, part)
            setattr(owner, name, self._timed(stage, getattr(owner, name)))
        step = self._learner.step

        def kept(*arguments: Any) -> np.ndarray | None:
            logits = step(*arguments)
            if logits is not None:
                self._logits.append(logits)
            return logits

        setattr(self._learner, "step", kept)  # noqa: B010

    def learn(self, first: int, end: int) -> dict[str, Any]:
        """Takes steps; see `serve`."""
        self._seconds, self._logits = dict.fromkeys(STAGES, 0.0), []
        processor, begin = time.process_time(), time.perf_counter()
        coming = [*(m.batch for m in self._minibatches[first + 1 : end]), None]
        for minibatch, ahead in zip(self._minibatches[first:end], coming, strict=True):
            if not self._learner.learn(minibatch, partial(lambda batch: batch, ahead)):
                raise SystemExit(f"a minibatch was quarantined: {minibatch.spans}")
        seconds, processor = time.perf_counter() - begin, time.process_time() - processor
        labels = np.concatenate([m.batch.labels[:, 0] for m in self._minibatches[first:end]])
        loss = log_loss(np.concatenate(self._logits)[:, 0], labels)
        begin = time.perf_counter()
        changed = len(self._learner.cut().tables["main"].ids)
        return {
            "loss": loss,
            "seconds": seconds,
            "processor_s": processor,
            "stages_s": self._seconds | {"rest": seconds - sum(self._seconds.values())},
            "cut_s": time.perf_counter() - begin,
            "cut_rows": changed,
        }

    def _timed(self, stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            begin = time.perf_counter()
            result = work(*arguments)
            self._seconds[stage] += time.perf_counter() - begin
            return result

        return timed


def main() -> None:
    keep_compiled("auto")
    data = StepData(Path(sys.argv[1]))
    # XLA and numba take the cores of the process: this is how they are told how many.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: data.work.threads])
    steps = OurSteps(data)
    serve(steps.learn, {"threads": data.work.threads})


if __name__ == "__main__":
    main()
