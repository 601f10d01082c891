"""Logistic regression with FTRL over hashed features, everything durable, against Vowpal Wabbit and river.

    python -m benchmarks.linear [--samples 1000000] [--rounds 3] [--batch 4096] [--source parquet jsonl] [--json]

The samples are train_step's: 23 slots of one id, heavy-tailed over 1 M ids, labels by a planted model. Ours is
`streamtrain run --until-end` of a `linear` model over a hash table of 2^22 rows, a durable epoch a second; Vowpal Wabbit
is `--ftrl -b 22` over the same samples as text, saved once at the end; river learns dicts that were made before. All go
over the samples once, with the same alpha and beta. Peers come from `make bench-peers`; one that is not there stands
under `missing`.

How to read it: rounds are interleaved, rates are medians, `low` and `high` the slowest and the fastest round; a ratio is
of medians, its `_core` of samples by second of processor time. Our clock runs from readiness until the last epoch is
durable, our processor time until the process has ended; nobody's start is in either. `log_loss` is of
each sample before it was learned: of as many samples as each has learned, river's being the first `--river-samples`.
Ours learns by minibatches, so that a sample's own minibatch is not known to it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.harness import FOLDER, Usage, machine, parser_of, streamtrain, tell
from benchmarks.peers import peer
from benchmarks.step_data import StepData, Work
from streamtrain.log.reader import LogReader
from streamtrain.produce import file_batches
from streamtrain.training.prequential import Prequential

__all__ = ["job_text", "options_of", "table_of", "vw_text"]

SLOTS, IDS, BLOCK = 23, 1_000_000, 1000
BITS, ALPHA, BETA = 22, 0.1, 1.0
BARS = {"vowpalwabbit": ("ratio_vw", 1.0), "river": ("ratio_river", 8.0)}
"""By peer, what our rate over its is called, and what it must be at least."""
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_TIMEOUT_S = 600.0
_LOSS_APART_MAX = 0.05


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs everything; see the module."""
    about = machine()
    folder = (FOLDER / "linear").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    StepData.write(folder, Work(SLOTS, 1, IDS, BLOCK, -(-options.samples // BLOCK), 2))
    data = StepData(folder)
    _write(data, folder, options.source)
    runners: dict[str, Any] = {
        f"streamtrain, {source}": lambda source=source: run_ours(folder, source, options.batch)
        for source in options.source
    }
    missing = {name: reason for name in BARS if (reason := peer(name).missing()) is not None}
    commands = {
        "vowpalwabbit": [folder / "samples.vw", folder / "vw.model", BITS, ALPHA, BETA],
        "river": [folder, options.river_samples, ALPHA, BETA],
    }
    for name in BARS.keys() - missing.keys():
        runners[name] = lambda name=name: run_peer(name, commands[name])
    for name, reason in missing.items():
        sys.stderr.write(f"WITHOUT {name}: {reason}\n")
    played: dict[str, list[dict[str, Any]]] = {name: [] for name in runners}
    for _ in range(options.rounds):
        for name, run in runners.items():
            played[name].append(run())
    shutil.rmtree(folder)
    return {
        "samples": data.work.steps * BLOCK,
        "batch": options.batch,
        **summary(played),
        "missing": missing,
        "machine": about | {"load_after": round(os.getloadavg()[0], 2)},
    }


def _write(data: StepData, folder: Path, sources: Sequence[str]) -> None:
    """The same samples in each form."""
    table = table_of(data)
    pq.write_table(table, folder / "samples.parquet", row_group_size=65_536)
    with (folder / "samples.vw").open("wb") as file:
        for batch in table.to_batches(max_chunksize=65_536):
            file.write(vw_text(batch))
    if "jsonl" in sources:
        with (folder / "samples.jsonl").open("wb") as file:
            for messages in file_batches([folder / "samples.parquet"], 4096):
                file.write(b"".join(message.value + b"\n" for message in messages))


def table_of(data: StepData) -> pa.Table:
    """Samples as columns: `y`, and an integer a slot."""
    rows = data.rows.reshape(-1, data.work.slots)
    columns = {f"slot_{slot}": np.ascontiguousarray(rows[:, slot]) for slot in range(data.work.slots)}
    return pa.table({"y": data.labels.reshape(-1).astype(np.int8), **columns})


def vw_text(batch: pa.RecordBatch) -> bytes:
    """Samples as Vowpal Wabbit reads them, one a line: the label as -1 or 1, and a namespace a slot."""
    label = pc.if_else(pc.equal(batch.column(0), 1), "1", "-1")
    slots = [
        pc.binary_join_element_wise(f"|{_LETTERS[slot]}", pc.cast(column, pa.string()), " ")
        for slot, column in enumerate(batch.columns[1:])
    ]
    lines = pc.binary_join_element_wise(label, *slots, " ")
    return ("\n".join(lines.to_pylist()) + "\n").encode()


def job_text(folder: Path, source: str, batch: int) -> str:
    """The job's TOML; its log is `folder/model`."""
    slots = "\n".join(f"slot_{slot} = {{}}" for slot in range(SLOTS))
    return f"""\
name = "linear"
seed = 1

[source]
kind = "files"
paths = [{json.dumps(str(folder / f"samples.{source}"))}]

[schema]
labels = ["y"]

[schema.slots]
{slots}

[tables.main]
kind = "hash"
rows = {1 << BITS}
dim = 1
optimizer = {{ kind = "ftrl", alpha = {ALPHA}, beta = {BETA} }}
init = {{ kind = "constant" }}

[model]
kind = "linear"

[training]
batch_size = {batch}

[log]
path = {json.dumps(str(folder / "model"))}
"""


def run_ours(folder: Path, source: str, batch: int) -> dict[str, Any]:
    """One daemon over all samples.

    Raises:
      SystemExit: it failed.
    """
    config, log = folder / "job.toml", folder / "model"
    shutil.rmtree(log, ignore_errors=True)
    config.write_text(job_text(folder, source, batch), encoding="utf-8")
    environment = os.environ | {
        "STREAMTRAIN__HTTP__ENABLED": "false",
        "STREAMTRAIN__LOGGING__FORMAT": "json",
    }
    command, told = streamtrain("run", config, "--until-end"), []
    begin = before_s = 0.0
    ended_s = _processor_of_children()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as daemon:
        assert daemon.stderr is not None
        for line in daemon.stderr:
            told.append(line)
            if "learning: epoch" in line:
                begin, before_s = time.time(), Usage.of(daemon.pid).processor_s
    if daemon.returncode:
        raise SystemExit(f"the daemon ended with {daemon.returncode}:\n{''.join(told)[-3000:]}")
    reader = LogReader.open(log)
    epochs = reader.epochs()
    last = reader.read(epochs[-1])
    prequential = Prequential(["y"], 1)
    prequential.load(last.metrics)
    quality = prequential.total()["y"]
    # The file gets its name when it is synced: that is when its inode last changed.
    durable = reader.epoch_path(epochs[-1]).stat().st_ctime
    return {
        "samples": last.samples_total,
        "log_loss": quality.log_loss,
        "auc": quality.auc,
        "seconds": durable - begin,
        "processor_s": _processor_of_children() - ended_s - before_s,
        "epochs": len(epochs) - 1,
    }


def _processor_of_children() -> float:
    """Seconds on any core of the processes that were started here and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run_peer(name: str, arguments: Sequence[object]) -> dict[str, Any]:
    """One peer over its samples.

    Raises:
      SystemExit: it failed.
    """
    command = [str(peer(name).interpreter), "-m", f"benchmarks.peers.{name}_linear", *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if run.returncode:
        raise SystemExit(f"{name} ended with {run.returncode}:\n{run.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def summary(played: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """What the rounds say; ours is the fastest of its sources.

    Raises:
      SystemExit: somebody has learned nothing, or not what the others did.
    """
    table: list[dict[str, Any]] = []
    for name, rounds in played.items():
        found = [r["samples"] / r["seconds"] for r in rounds]
        table.append(
            {
                "name": name,
                "samples_per_s": round(statistics.median(found)),
                "low": round(min(found)),
                "high": round(max(found)),
                "samples_per_core_s": round(
                    statistics.median(r["samples"] / r["processor_s"] for r in rounds)
                ),
                "samples": int(rounds[0]["samples"]),
                "log_loss": round(rounds[0]["log_loss"], 4),
                "auc": round(rounds[0]["auc"], 4) if "auc" in rounds[0] else None,
                "epochs": rounds[0].get("epochs"),
                "version": rounds[0].get("version"),
            }
        )
    by_name = {row["name"]: row for row in table}
    ours = max((row for row in table if row["epochs"] is not None), key=lambda row: row["samples_per_s"])
    ratios: dict[str, Any] = {}
    for name, (ratio, bar) in BARS.items():
        if name in by_name:
            ratios[ratio] = round(ours["samples_per_s"] / by_name[name]["samples_per_s"], 2)
            ratios[f"{ratio}_core"] = round(
                ours["samples_per_core_s"] / by_name[name]["samples_per_core_s"], 2
            )
            ratios[f"{ratio}_met"] = ratios[ratio] >= bar
    return ratios | {"competitors": table}


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = parser_of("linear", __doc__)
    for name, default, words in (
        ("samples", 1_000_000, "samples of ours and of Vowpal Wabbit"),
        (
            "river-samples",
            100_000,
            "samples of river, which takes a minute for a million and does not grow faster",
        ),
        ("rounds", 3, "rounds of each"),
        ("batch", 4096, "samples a minibatch of ours"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{words} (default: %(default)s)")
    parser.add_argument(
        "--source",
        nargs="+",
        choices=("parquet", "jsonl"),
        default=["parquet"],
        help="what ours reads (default: parquet)",
    )
    options = parser.parse_args(arguments)
    for name in ("samples", "river_samples", "rounds", "batch"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)}: must be at least 1")
    return options


def main() -> None:
    options = options_of()
    tell(measure(options), options.json)


if __name__ == "__main__":
    main()
