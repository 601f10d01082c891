"""What a minibatch that would leave NaN or an infinity does to the model: nothing, in any part of it, to the bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamtrain.config import Job
from streamtrain.log.record import EpochRecord, TableRows
from streamtrain.samples.batch import SampleBatch
from streamtrain.samples.decoder import Decoder
from streamtrain.sources import Chunk
from streamtrain.training.learner import Learner
from tests.fakes import job

SECTIONS: dict[str, Any] = {
    "schema": {
        "labels": ["click"],
        "weight": "importance",
        "slots": {
            "user": {"table": "users"},
            "item": {"table": "items"},
            "history": {"kind": "sequence", "shares": "item", "length_max": 3, "pooling": "mean"},
            "price": {"kind": "dense"},
        },
    },
    "tables": {"users": {"dim": 2}, "items": {"dim": 3}},
    "model": {"kind": "mlp", "hidden": [4]},
}


def learner(folder: Path) -> Learner:
    made: Job = job(folder, **SECTIONS)
    learner = Learner(made)
    learner.restore([learner.genesis({"p": 0}, "topic")], sequential=False)
    return learner


def batch(seed: int, **poison: float) -> SampleBatch:
    """Eight samples; the fifth has the values of `poison`, and ids that no other minibatch has."""
    rng = np.random.default_rng(seed)
    records = []
    for row in range(8):
        user, item = (int(n) for n in rng.integers(0, 5, 2))
        sample: dict[str, Any] = {
            "user": user,
            "item": item,
            "history": [1, item],
            "price": 0.5,
            "click": row % 2,
            "importance": 1.0,
        }
        if row == 4 and poison:
            sample |= {"user": 1000 + seed, "item": 2000 + seed} | poison
        records.append(json.dumps(sample).encode())
    offsets = np.arange(8, dtype=np.int64)
    decoder = Decoder(job(Path("/nowhere"), **SECTIONS).sample_schema)
    chunk = decoder.decode(Chunk("p", 0, 8, offsets, offsets, records))
    assert chunk.batch.size == 8 and not chunk.bad
    return chunk.batch


def same(one: EpochRecord, other: EpochRecord) -> None:
    assert one.tables.keys() == other.tables.keys()
    for name, rows in one.tables.items():
        for column in TableRows.__slots__:
            assert getattr(rows, column).tobytes() == getattr(other.tables[name], column).tobytes(), (
                name,
                column,
            )
    for kind in ("dense", "metrics"):
        ours, theirs = getattr(one, kind), getattr(other, kind)
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert ours[name].tobytes() == theirs[name].tobytes(), name


@pytest.mark.parametrize(
    "poison",
    [{"price": 3e38, "click": 1}, {"importance": 3e38}, {"importance": 1e35}],
    ids=["in the model", "in the loss", "in a row's optimizer alone"],
)
def test_what_is_cut_is_as_if_a_minibatch_that_overflows_had_not_been_there(
    tmp_path: Path, poison: dict[str, float]
) -> None:
    poisoned, clean = learner(tmp_path), learner(tmp_path)
    for each in (poisoned, clean):
        assert each.step(batch(1), 0) is not None
    assert poisoned.step(batch(2, **poison), 1) is None
    for each in (poisoned, clean):
        assert each.step(batch(3), 2) is not None
    same(poisoned.cut(), clean.cut())


def test_a_row_that_overflows_undoes_the_dense_half_too(tmp_path: Path) -> None:
    """The case that needs it: the dense half had stepped, and every gradient was a number."""
    model, poison = learner(tmp_path), batch(2, importance=1e35)
    seen = model.sparse.score(poison, 8)
    before = model.dense.state()
    arguments = (seen.pooled, seen.sequences, poison.dense, poison.labels, poison.weights)
    assert model.dense.step(*arguments).finite and not equal(before, model.dense.state())
    model.dense.undo()
    assert model.step(poison, 0) is None
    assert equal(before, model.dense.state())


def equal(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    return all(array.tobytes() == other[name].tobytes() for name, array in one.items())
