"""The work that train_step gives to all alike: one file of ids and labels, and its constants.

Imports numpy alone: peers read it in environments of their own.

A slot's ids are its ranks, log-uniform (Zipf with exponent 1) over the slot's share of the rows: about a third of a
minibatch's ids are in every cache and a third in none. Labels are drawn by a planted logistic model with one hidden
weight a row, so that there is something to learn and losses can be compared.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ADAGRAD_EPSILON",
    "ADAM_LEARNING_RATE",
    "HIDDEN",
    "INITIAL_ACCUMULATOR",
    "INITIAL_STD",
    "ROW_LEARNING_RATE",
    "StepData",
    "Work",
    "feature_ids",
    "log_loss",
]

HIDDEN = (200, 80)
ROW_LEARNING_RATE = 0.05
INITIAL_ACCUMULATOR = 0.1
ADAGRAD_EPSILON = 1e-8
ADAM_LEARNING_RATE = 0.001
INITIAL_STD = 0.01

_SEED = 7
_EFFECT_STD = 0.4
_BIAS = -1.0


@dataclass(frozen=True, slots=True)
class Work:
    """The size of the work.

    Attributes:
      slots: of one id each.
      dim: floats a row.
      rows: of all slots together; each slot has an equal share.
      batch: samples a step.
      steps: in the file.
      threads: that a competitor may use.
    """

    slots: int
    dim: int
    rows: int
    batch: int
    steps: int
    threads: int

    @property
    def share(self) -> int:
        """Rows of a slot."""
        return self.rows // self.slots


class StepData:
    """Ids and labels by step.

    Attributes:
      work: its size.
      rows: `[steps, batch, slots]` int64 in [0, work.rows): which row; slot s has those from s * share on.
      labels: `[steps, batch]` float32, 0 or 1.
    """

    def __init__(self, folder: Path) -> None:
        """Opens what `write` wrote."""
        self.work = Work(**json.loads((folder / "work.json").read_text(encoding="utf-8")))
        self.rows: NDArray[np.int64] = np.load(folder / "rows.npy", mmap_mode="r")
        self.labels: NDArray[np.float32] = np.load(folder / "labels.npy", mmap_mode="r")

    @staticmethod
    def write(folder: Path, work: Work) -> None:
        """Draws the data; the same for the same work."""
        folder.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(_SEED)
        effects = random.standard_normal(work.share * work.slots, np.float32) * np.float32(_EFFECT_STD)
        shape = (work.steps, work.batch, work.slots)
        rows = np.lib.format.open_memmap(folder / "rows.npy", "w+", np.int64, shape)
        labels = np.lib.format.open_memmap(folder / "labels.npy", "w+", np.float32, shape[:2])
        starts = np.arange(work.slots) * work.share
        for step in range(work.steps):
            ranks = np.minimum(work.share ** random.random(shape[1:]), work.share - 1).astype(np.int64)
            rows[step] = ranks + starts
            logits = effects[rows[step]].sum(axis=1) + _BIAS
            labels[step] = random.random(work.batch) < 1 / (1 + np.exp(-logits))
        (folder / "work.json").write_text(json.dumps(asdict(work)) + "\n", encoding="utf-8")


def log_loss(logits: NDArray[np.float32], labels: NDArray[np.float32]) -> float:
    """The mean of the samples' losses, from logits `[B]` and labels `[B]`."""
    z = logits.astype(np.float64)
    return float(np.mean(np.logaddexp(0.0, z) - labels * z))


def feature_ids(ordinals: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Distinct, well mixed ids of distinct ordinals, as hashing would give."""
    mixed = (ordinals.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
