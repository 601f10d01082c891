"""The job whose files are kept, and how they are looked at."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.recovery import recover
from tests.daemon import TIMEOUT_S

__all__ = ["FOLDER", "KEPT", "LATER", "REQUEST", "learn", "rows", "samples", "unpack", "write_job"]

FOLDER = Path(__file__).parent
KEPT, LATER = 480, 160
"""Samples in the kept log, and those that a version learns after it. Both are whole minibatches."""

# Paths are relative: a position names its file as the job does. A minibatch is cut by its size alone, never by a clock.
JOB = """
name = "golden"
seed = 7
[source]
kind = "files"
paths = ["samples.jsonl"]
[schema]
labels = ["click"]
event_time = "time_ms"
[schema.slots]
user = { table = "main" }
item = { type = "string", table = "main" }
recent = { kind = "sequence", shares = "item", type = "string", length_max = 4, pooling = "mean" }
price = { kind = "dense" }
pair = { kind = "cross", of = ["user", "item"], table = "tiered" }
rare = { field = "user", table = "counted" }
seen = { field = "user", table = "bloom" }
shared = { field = "item", type = "string", table = "hashed" }
[tables.main]
dim = 3
[tables.tiered]
dim = 2
memory_bytes_max = 262144
optimizer = { kind = "adam" }
expiry = { after_steps = 12, sweep_steps = 3 }
decay = { every_steps = 5, weights = 0.95 }
[tables.counted]
dim = 1
admission = { kind = "count", threshold = 3 }
[tables.bloom]
dim = 1
unadmitted = "zero"
admission = { kind = "counting_bloom", threshold = 2, expected_ids = 100 }
optimizer = { kind = "rowwise_adagrad" }
[tables.hashed]
kind = "hash"
dim = 2
rows = 16
optimizer = { kind = "ftrl", l1 = 0.01 }
[model]
kind = "mlp"
hidden = [8]
[training]
batch_size = 32
linger_ms = 60000
[training.bad_samples.dead_letters]
kind = "file"
path = "dead.jsonl"
[log]
path = "model"
[store]
shards = 2
[[exports]]
kind = "deltas"
path = "exports"
[http]
enabled = false
"""


def samples(first: int, stop: int) -> list[dict[str, Any]]:
    """Samples by number, the same in every version: nothing of a library's random numbers."""
    made = []
    for n in range(first, stop):
        mixed = n * 2_654_435_761 % 2**32
        user, item = mixed % 23, (mixed >> 8) % 17
        made.append(
            {
                "user": user,
                "item": f"i{item}",
                "recent": [f"i{(mixed >> shift) % 17}" for shift in range(n % 4)],
                "price": (mixed >> 16) % 100 / 50 - 1,
                "click": int((user + item + n // 200) % 3 == 0),
                "time_ms": 1_700_000_000_000 + n * 10,
            }
        )
    return made


REQUEST = samples(10_000, 10_008)
"""What followers are asked."""


def write_job(folder: Path) -> None:
    (folder / "job.toml").write_text(JOB)


def learn(folder: Path, rows: Sequence[Mapping[str, Any]], store: str) -> str:
    """Appends samples, and runs the daemon of `folder` to their end; what it logged."""
    with (folder / "samples.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    run = subprocess.run(
        [sys.executable, "-m", "streamtrain", "run", "job.toml", "--until-end"],
        cwd=folder,
        env=os.environ | {"STREAMTRAIN__STORE__URL": store},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stderr


def rows(log: Path) -> dict[str, dict[str, list[list[float]]]]:
    """By table and id: weights, optimizer slots, and [count, last step], as JSON has them."""
    found: dict[str, dict[str, list[list[float]]]] = {}
    for record in recover(EpochLog.open(log)):
        for name, table in record.tables.items():
            held = found.setdefault(name, {})
            for id_ in table.tombstones.tolist():
                held.pop(str(id_), None)
            columns = (table.ids, table.weights, table.slots, table.counts, table.last_steps)
            for id_, weights, slots, count, step in zip(*map(np.ndarray.tolist, columns), strict=True):
                held[str(id_)] = [weights, slots, [count, step]]
    return {name: dict(sorted(held.items())) for name, held in sorted(found.items())}


def unpack(version: Path, folder: Path) -> Path:
    """A copy of a version's folder to work in, its packed files unpacked."""
    shutil.copytree(version, folder, ignore=shutil.ignore_patterns("*.gz"))
    for packed in version.rglob("*.gz"):
        target = folder / packed.relative_to(version).with_suffix("")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(gzip.decompress(packed.read_bytes()))
    return folder
