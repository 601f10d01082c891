"""Training on grouped samples against training on the same samples one by one, over how often a user's features repeat.

    python -m benchmarks.grouped [--repetition 1 2 8 57 200] [--slots 23] [--shared 20] [--batch 5000] [--json]

The work of train_step (one id a slot, log-uniform over its share of the rows; `mlp` of 200 and 80; Adagrad and Adam), where
the first `--shared` slots are the user's and the others the samples'. A user has 1 + Poisson(repetition - 1) samples. One
job has a level, the other none.

`ratio_flat` is end to end: `streamtrain run` learns Arrow files of either kind, durably, and samples a second are compared, median
of `--daemons` runs in turn. `ratio_flat_processor` is that of samples a second of the daemons' processor time, which a busy
machine disturbs least.

The rest is measured in this process: the real Decoder and Learner, one after the other in one thread, on Arrow records of a minibatch each.
Rounds of the two sides alternate, and medians of minibatches are compared: `ratio_serial` by wall time, `ratio_serial_processor`
by processor time, `ratio_step` that of the Learner alone, by processor time. The stages say where a minibatch's processor time goes.
`ratio_products` is that of the floating-point operations in matrix products: the dense stage comes near it where all products run at
one rate, and falls short of it where narrow ones are slower.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import throughput
from benchmarks.harness import FOLDER, Data, machine, tell
from benchmarks.learner_step import STAGES, job_of
from benchmarks.step_data import HIDDEN, Work, feature_ids
from streamtrain.config import Job, parse_job
from streamtrain.dense.compiled import keep_compiled
from streamtrain.samples.batch import Ragged, SampleBatch
from streamtrain.samples.decoder import Decoder
from streamtrain.samples.schema import LEAF
from streamtrain.sources import Chunk
from streamtrain.training.learner import Learner

__all__ = ["grouped_batches", "jobs_of", "options_of", "records_of"]

LEVEL = "user"
_WARM_STEPS = 2
_SEED = 11


def jobs_of(work: Work, shared: int) -> tuple[Job, Job]:
    """The job of grouped samples, whose first `shared` slots are the user's, and that of the same samples one by one."""
    flat = job_of(work)
    data = flat.describe()
    schema = data["schema"]
    schema["levels"] = [{"name": LEVEL, "children": "samples"}]
    for slot in range(shared):
        schema["slots"][f"slot_{slot}"]["level"] = LEVEL
    return parse_job(data, "grouped"), flat


def grouped_batches(work: Work, shared: int, repetition: float) -> list[SampleBatch]:
    """`work.steps` minibatches; a user whose samples do not fit into one is in the next one too."""
    random = np.random.default_rng(_SEED)
    found = []
    left = 0
    for _ in range(work.steps):
        sizes = [min(left, work.batch)] if left else []
        while sum(sizes) < work.batch:
            sizes.append(1 + int(random.poisson(repetition - 1)))
        left = sum(sizes) - work.batch
        sizes[-1] -= left
        nodes = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        rows = {LEVEL: len(sizes), LEAF: work.batch}
        ids = {}
        for slot in range(work.slots):
            level = LEVEL if slot < shared else LEAF
            ranks = np.minimum(work.share ** random.random(rows[level]), work.share - 1).astype(np.int64)
            offsets = np.arange(rows[level] + 1, dtype=np.int64)
            ids[f"slot_{slot}"] = Ragged(feature_ids(ranks + slot * work.share), offsets, None, level)
        times = np.zeros(work.batch, np.int64)
        found.append(
            SampleBatch(
                work.batch,
                ids,
                np.zeros((work.batch, 0), np.float32),
                random.integers(0, 2, (work.batch, 1)).astype(np.float32),
                np.ones(work.batch, np.float32),
                times,
                times,
                {LEVEL: nodes},
            )
        )
    return found


def products(work: Work, shared: int, nodes: float) -> float:
    """Multiplications in the first two layers for a minibatch, forward; backward takes twice as many in each."""
    own = work.batch * ((work.slots - shared) * work.dim * HIDDEN[0] + HIDDEN[0] * HIDDEN[1])
    return own + nodes * shared * work.dim * HIDDEN[0]


def records_of(batch: SampleBatch) -> tuple[bytes, bytes]:
    """A minibatch as one Arrow record of trees, and as one of samples."""
    shared, own = (
        {
            name: pa.array(r.values.view(np.int64))
            for name, r in batch.ids.items()
            if (r.level == LEAF) == leaf
        }
        for leaf in (False, True)
    )
    own["y"] = pa.array(batch.labels[:, 0])
    nodes = batch.nodes[LEVEL]
    starts = np.concatenate([[0], np.cumsum(np.bincount(nodes))]).astype(np.int32)
    samples = pa.StructArray.from_arrays(list(own.values()), list(own))
    trees = {**shared, "samples": pa.ListArray.from_arrays(pa.array(starts), samples)}
    flat = {**{name: column.take(pa.array(nodes)) for name, column in shared.items()}, **own}
    return _record(pa.table(trees)), _record(pa.table(flat))


def _record(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


class Side:
    """A decoder and a learner, and how long they and the stages of a step take."""

    def __init__(self, job: Job) -> None:
        self._learner = Learner.warm(job)
        self._learner.restore([self._learner.genesis({"0": 0}, "files")], sequential=True)
        self._decoder = Decoder(job.sample_schema, codec="arrow")
        self._decoder.warm_up()
        self._step = 0
        self.times: dict[str, list[float]] = {}
        for stage, (part, name) in STAGES.items():
            owner = getattr(self._learner, part)
            setattr(owner, name, self._timed(stage, getattr(owner, name)))

    @property
    def compilations(self) -> int:
        """Those that a step had to wait for."""
        return self._learner.dense.compilations

    def clear(self) -> None:
        """Begins to measure anew; what was learned stays, but no row is dirty."""
        self._learner.sparse.cut()
        self.times = {}

    def learn(self, records: Sequence[bytes]) -> None:
        """Decodes each of `records`, and takes a step on it."""
        for record in records:
            processor, begin = time.process_time(), time.perf_counter()
            offsets = np.array([self._step])
            decoded = self._decoder.decode(Chunk("0", self._step, self._step + 1, offsets, offsets, [record]))
            self._note("decode", time.process_time() - processor)
            stepping = time.process_time()
            if decoded.bad or self._learner.step(decoded.batch, self._step) is None:
                raise SystemExit(f"a minibatch was refused: {decoded.bad}")
            self._note("step", time.process_time() - stepping)
            self._note("wall", time.perf_counter() - begin)
            self._note("processor", time.process_time() - processor)
            self._step += 1

    def median_ms(self, stage: str) -> float:
        """Of a step's time in a stage, in milliseconds."""
        return 1e3 * statistics.median(self.times[stage])

    def _note(self, stage: str, seconds: float) -> None:
        self.times.setdefault(stage, []).append(seconds)

    def _timed(self, stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            begin = time.process_time()
            result = work(*arguments)
            self._note(stage, time.process_time() - begin)
            return result

        return timed


def end_to_end(
    folder: Path,
    work: Work,
    options: argparse.Namespace,
    trees: Sequence[bytes],
    samples: Sequence[bytes],
) -> dict[str, float]:
    """What daemons make of the same records in files, `--repeat` times over."""
    names = ("grouped", "flat")
    data = [
        _written(folder / name, job, records * options.repeat, work.batch)
        for name, job, records in zip(names, jobs_of(work, options.shared), (trees, samples), strict=True)
    ]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(options.daemons):
        for name, side in zip(names, data, strict=True):
            source = {
                "kind": "files",
                "paths": [str(side.parquet)],
                "follow": True,
                "chunk_records_max": work.batch,
            }
            found[name].append(throughput.learned(folder / f"{name}-run", side, source, work.batch, None))
    wall, processor = (
        {name: statistics.median(run[rate] for run in runs) for name, runs in found.items()}
        for rate in ("samples_per_s", "samples_per_core_s")
    )
    return {
        "ratio_flat": wall["grouped"] / wall["flat"],
        "ratio_flat_processor": processor["grouped"] / processor["flat"],
        "grouped_samples_per_s": wall["grouped"],
        "flat_samples_per_s": wall["flat"],
        "grouped_cores": statistics.median(run["cores"] for run in found["grouped"]),
        "flat_cores": statistics.median(run["cores"] for run in found["flat"]),
    }


def _written(folder: Path, job: Job, records: Sequence[bytes], batch: int) -> Data:
    """The job, and its records as the batches of an Arrow file."""
    folder.mkdir(parents=True, exist_ok=True)
    path, config = folder / "samples.arrow", folder / "job.toml"
    tables = [pa.ipc.open_stream(record).read_all() for record in records]
    with pa.ipc.new_file(path, tables[0].schema) as writer:
        for table in tables:
            writer.write_table(table)
    config.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in job.describe().items()))
    return Data(folder.name, batch * len(records), path, path, config)


def _toml(value: Any) -> str:
    """A value on one line. JSON's strings, numbers and booleans are TOML's as well."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    folder = (FOLDER / "grouped").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    about = machine()
    work = Work(options.slots, options.dim, options.rows, options.batch, options.steps, 1)
    grouped, flat = (Side(job) for job in jobs_of(work, options.shared))
    curve: list[dict[str, Any]] = []
    stages: list[dict[str, Any]] = []
    for repetition in options.repetition:
        batches = grouped_batches(work, options.shared, repetition)
        trees, samples = zip(*map(records_of, batches), strict=True)
        rounds = [(grouped, trees), (flat, samples)]
        for side, given in rounds:
            side.learn(given[:_WARM_STEPS])
            side.clear()
        for first in range(0, work.steps, options.round):
            for side, given in rounds:
                side.learn(given[first : first + options.round])
        nodes = statistics.median(batch.rows(LEVEL) for batch in batches)
        curve.append(
            {
                "repetition": repetition,
                "nodes": nodes,
                "ratio_products": products(work, 0, 0) / products(work, options.shared, nodes),
                **(end_to_end(folder, work, options, trees, samples) if options.daemons else {}),
                "ratio_serial": flat.median_ms("wall") / grouped.median_ms("wall"),
                "ratio_serial_processor": flat.median_ms("processor") / grouped.median_ms("processor"),
                "ratio_step": flat.median_ms("step") / grouped.median_ms("step"),
                "ratio_bytes": len(samples[0]) / len(trees[0]),
                "grouped_processor_ms": grouped.median_ms("processor"),
                "flat_processor_ms": flat.median_ms("processor"),
            }
        )
        stages += [
            {
                "repetition": repetition,
                "samples": name,
                **{stage: side.median_ms(stage) for stage in ("decode", *STAGES)},
            }
            for name, side in (("grouped", grouped), ("flat", flat))
        ]
    shutil.rmtree(folder, ignore_errors=True)
    return {
        "slots": options.slots,
        "slots_shared": options.shared,
        "batch": options.batch,
        "compilations_late": grouped.compilations + flat.compilations,
        "curve": curve,
        "stages_processor_ms": stages,
        "machine": about,
    }


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--repetition",
        type=float,
        nargs="+",
        default=[1.0, 2.0, 8.0, 57.0, 200.0],
        help="samples a user (default: 1 2 8 57 200)",
    )
    parser.add_argument("--slots", type=int, default=23, help="slots of one id (default: %(default)s)")
    parser.add_argument("--shared", type=int, default=20, help="of these, the user's (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=18, help="floats a row (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=1_000_000, help="ids of all slots (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=5000, help="samples a minibatch (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=40, help="minibatches a side (default: %(default)s)")
    parser.add_argument("--round", type=int, default=5, help="steps in turn (default: %(default)s)")
    parser.add_argument("--daemons", type=int, default=2, help="of each kind; 0: none (default: %(default)s)")
    parser.add_argument(
        "--repeat",
        type=int,
        default=5,
        help="times that a daemon learns the minibatches (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args(arguments)


def main() -> None:
    options = options_of()
    keep_compiled("auto")
    tell(measure(options), options.json)


if __name__ == "__main__":
    main()
