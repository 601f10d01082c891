"""A follower's scores are the trainer's at the same epoch, for samples known and unknown, in whatever form they come."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import TypeAdapter

from streamtrain.dense.model import parse_settings
from streamtrain.dense.net import DenseNet
from streamtrain.dense.optimizers import DenseAdam
from streamtrain.exports import ExportRunner
from streamtrain.layout import Layout
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.record import EpochRecord
from streamtrain.samples.batch import SampleBatch
from streamtrain.samples.decoder import Decoder
from streamtrain.samples.schema import Schema
from streamtrain.serving import Follower
from streamtrain.sparse.net import SparseNet
from streamtrain.sparse.tables import AnyTable
from tests.exporting import make_exporter

SLOTS = {
    "user": {"kind": "sparse", "type": "int", "table": "wide"},
    "item": {"kind": "sparse", "type": "string", "table": "deep"},
    "tags": {
        "kind": "sparse",
        "type": "string",
        "many": True,
        "weights": "shares",
        "pooling": "weighted",
        "table": "deep",
    },
    "history": {"kind": "sequence", "type": "string", "length_max": 4, "shares": "item"},
    "age": {"kind": "bucket", "boundaries": [18.0, 40.0], "table": "wide"},
    "user_age": {"kind": "cross", "of": ["user", "age"], "table": "wide"},
    "price": {"kind": "dense", "size": 2},
}
JOB: dict[str, Any] = {
    "name": "rich",
    "seed": 11,
    "schema": {"labels": ["click", "buy"], "slots": SLOTS},
    "tables": {
        "wide": {"dim": 3, "init": {"kind": "uniform", "scale": 0.2}, "optimizer": {"kind": "adagrad"}},
        "deep": {"dim": 5, "init": {"kind": "normal", "std": 0.3}, "optimizer": {"kind": "adam"}},
    },
    "model": {"kind": "din"},
}
BATCH = 16
TABLE: TypeAdapter[AnyTable] = TypeAdapter(AnyTable)


class Trainer:
    """The two halves as the daemon steps them."""

    def __init__(self, path: Path, tables: Mapping[str, Any] = JOB["tables"]) -> None:
        schema = Schema.model_validate(JOB["schema"])
        settings = {name: TABLE.validate_python(table) for name, table in tables.items()}
        layout = Layout.of(schema, {name: table.dim for name, table in settings.items()})
        self.sparse = SparseNet(layout, settings, JOB["seed"])
        self.dense = DenseNet(
            layout,
            parse_settings(JOB["model"]),
            DenseAdam(learning_rate=0.05),
            seed=JOB["seed"],
            batch_size=BATCH,
        )
        self.decoder = Decoder(schema)
        self.log = EpochLog.create(path, "rich", JOB | {"tables": tables})
        self._previous, self._step = "", 0

    def learn(self, batch: SampleBatch) -> np.ndarray:
        """One step; returns the probabilities from before it."""
        activations = self.sparse.forward(batch, self._step, BATCH)
        result = self.dense.step(
            activations.pooled, activations.sequences, batch.dense, batch.labels, batch.weights
        )
        self.sparse.backward(result.grad_pooled, result.grad_sequences, self._step)
        self._step += 1
        return 1 / (1 + np.exp(-result.logits.astype(np.float64)))

    def commit(self) -> None:
        epoch = 0 if (head := self.log.head()) is None else head + 1
        record = EpochRecord(
            epoch, self._previous, self._step, self._step, 0, 0, {}, self.sparse.cut(), self.dense.state(), {}
        )
        self._previous = self.log.append(record)


def sample(generator: np.random.Generator, ids: int) -> dict[str, Any]:
    tags = [f"t{i}" for i in generator.integers(0, ids, generator.integers(0, 4))]
    return {
        "user": int(generator.integers(0, ids)),
        "item": f"i{generator.integers(0, ids)}",
        "tags": tags,
        "shares": generator.random(len(tags)).tolist(),
        "history": [f"i{i}" for i in generator.integers(0, ids, generator.integers(0, 7))],
        "age": float(generator.integers(10, 60)),
        "price": generator.normal(size=2).tolist(),
        "click": float(generator.integers(0, 2)),
        "buy": float(generator.integers(0, 2)),
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, list[list[dict[str, Any]]], Path]:
    path = tmp_path_factory.mktemp("scores")
    generator = np.random.default_rng(3)
    batches = [[sample(generator, 20 + 10 * n) for _ in range(BATCH)] for n in range(12)]
    return Trainer(path / "log"), batches, path / "export"


def test_scores_equal_the_trainers_at_every_epoch(trained):
    trainer, batches, path = trained
    trainer.commit()
    exporter = make_exporter(trainer.log, path, base_every_epochs=4)
    runner = ExportRunner(trainer.log, exporter)
    follower = Follower(path, piece_samples=BATCH)
    for epoch, samples in enumerate(batches):
        runner.catch_up()
        follower.poll()
        assert follower.version.epoch == epoch
        # Each batch has ids that nobody has learned yet: both sides start them with the same vectors.
        scores = follower.predict(
            [{k: v for k, v in s.items() if k not in ("click", "buy")} for s in samples]
        )
        np.testing.assert_allclose(
            scores, trainer.learn(trainer.decoder.decode_samples(samples)), rtol=0, atol=1e-6
        )
        trainer.commit()
    runner.catch_up()
    late = Follower(path, piece_samples=BATCH)
    late.poll()
    follower.poll()
    everything = [sample for batch in batches for sample in batch]
    assert np.array_equal(late.predict(everything), follower.predict(everything))

    # The same samples as an Arrow table, decoded already, one by one, and in pieces of another size.
    expected = follower.predict(everything)
    assert expected.shape == (len(everything), 2)
    assert np.ptp(expected) > 0.1
    assert np.array_equal(expected, follower.predict(pa.Table.from_pylist(everything)))
    assert np.array_equal(expected, follower.predict(trainer.decoder.decode_samples(everything)))
    one_by_one = np.concatenate([follower.predict([sample]) for sample in everything[:20]])
    np.testing.assert_allclose(one_by_one, expected[:20], rtol=0, atol=1e-6)
    other = Follower(path, piece_samples=7)
    other.poll()
    np.testing.assert_allclose(other.predict(everything), expected, rtol=0, atol=1e-6)
    assert follower._scorer.compilations == other._scorer.compilations == 0
    exporter.close()
