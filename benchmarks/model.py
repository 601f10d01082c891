"""A model with as many resident rows as asked for: a job, its epoch log, and samples that meet those rows.

One table of `dim` 18 with Adagrad, so 152 bytes a row (18 weights, 18 sums of squares, count and last step), shared by 23
integer slots; an MLP over them. The log is a real one: genesis, one epoch that holds all rows, and the base that
`streamtrain.log.fold` makes of the two. What follows it is for a daemon to write.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.config import Job, load_job
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.fold import fold
from streamtrain.log.record import TableRows
from streamtrain.samples.hashing import hash_ints
from streamtrain.training.learner import Learner

__all__ = ["BYTES_PER_ROW", "DIM", "SLOTS", "job_text", "sample_lines", "write_model"]

SLOTS = 23
DIM = 18
TABLE = "main"
BYTES_PER_ROW = 4 * (2 * DIM + 2)
_FIRST_EVENT_MS = 1_700_000_000_000


def job_text(folder: Path, source: dict[str, Any], *, store: str = "memory://", rows_max: int) -> str:
    """The job's TOML; its log is `folder/model`.

    Args:
      source: the settings under `[source]`.
      rows_max: bound on rows of the table; leave room above the rows of `write_model`.
    """
    slots = "\n".join(f"slot_{slot} = {{}}" for slot in range(SLOTS))
    # JSON's strings, numbers, arrays and booleans are TOML's as well.
    settings = "\n".join(f"{key} = {json.dumps(value)}" for key, value in source.items())
    return f"""\
name = "resident"
seed = 1

[source]
{settings}

[schema]
labels = ["y"]
event_time = "time_ms"

[schema.slots]
{slots}

[tables.{TABLE}]
dim = {DIM}
rows_max = {rows_max}

[model]
kind = "mlp"

[store]
url = {json.dumps(store)}

[log]
path = {json.dumps(str(folder / "model"))}
base_every_epochs = 1_000_000
"""


def write_model(job: Job, rows: int, positions: dict[str, int], source: str) -> None:
    """Writes the job's log: genesis, an epoch with `rows` rows, and the base of both. It must not exist.

    Args:
      positions: by partition, the next offset to read.
      source: the source's identity.

    Raises:
      LogError: there is a log already, or no room.
    """
    log = EpochLog.create(job.log.path, job.name, job.describe())
    learner = Learner(job)
    genesis = dataclasses.replace(
        learner.genesis(positions, source), committed_at_ms=time.time_ns() // 1_000_000
    )
    digest = log.append(genesis)
    log.append(
        dataclasses.replace(genesis, epoch=1, previous=digest, tables={TABLE: _rows(rows)}, step_next=rows)
    )
    fold(job.log.path)


def _rows(count: int) -> TableRows:
    """Rows as a month of learning leaves them: no two alike, most of them seen a few times."""
    random = np.random.default_rng(1)
    return TableRows(
        ids=np.concatenate([_ids(slot, np.arange(share)) for slot, share in enumerate(shares(count))]),
        weights=random.standard_normal((count, DIM), np.float32) * np.float32(0.01),
        slots=random.standard_exponential((count, DIM), np.float32),
        counts=random.geometric(0.1, count).astype(np.uint32),
        last_steps=random.integers(0, count, count, np.uint32),
    )


def shares(rows: int) -> list[int]:
    """By slot, how many of the rows are its own."""
    return [rows // SLOTS + (slot < rows % SLOTS) for slot in range(SLOTS)]


def _ids(slot: int, values: NDArray[np.int64]) -> NDArray[np.uint64]:
    return hash_ints(values.astype(np.int64), f"slot_{slot}")


def sample_lines(rows: int, count: int, seed: int = 0) -> Iterator[bytes]:
    """JSON samples, one a line. A slot's values are log-uniform over its share of the rows (Zipf with exponent 1).

    Args:
      rows: those of `write_model`: every id of a sample has a row.
      count: how many samples.
    """
    random = np.random.default_rng(seed)
    of_slot = np.array(shares(rows))
    for start in range(0, count, 4096):
        size = min(4096, count - start)
        values = np.minimum(of_slot ** random.random((size, SLOTS)), of_slot - 1).astype(np.int64)
        labels = random.random(size) < 0.3
        for i, (row, label) in enumerate(zip(values.tolist(), labels.tolist(), strict=True)):
            slots = ", ".join(f'"slot_{slot}": {value}' for slot, value in enumerate(row))
            yield f'{{"y": {int(label)}, "time_ms": {_FIRST_EVENT_MS + start + i}, {slots}}}'.encode()


def write_lines(path: Path, lines: Iterable[bytes]) -> None:
    with path.open("wb") as file:
        file.writelines(line + b"\n" for line in lines)


def job_of(path: Path, text: str) -> Job:
    """Writes the job beside its log, and reads it as the daemon will."""
    path.write_text(text, encoding="utf-8")
    return load_job(path, {})
