"""A follower of a model with hashed tables scores like the trainer, whatever the kind, from a base or from deltas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamtrain.exports import ExportRunner
from streamtrain.serving import Follower
from tests.exporting import make_exporter
from tests.unit.serving.test_scores import BATCH, JOB, Trainer, sample

KINDS: dict[str, dict[str, Any]] = {
    "hash": {"kind": "hash", "rows": 40},
    "add": {"kind": "multi_hash", "rows": [13, 7]},
    "concat": {"kind": "multi_hash", "rows": 19, "hashes": 3, "combine": "concat"},
    "multiply": {"kind": "multi_hash", "rows": [13, 7], "combine": "multiply"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_the_trainers_at_every_epoch(kind: str, tmp_path: Path) -> None:
    tables = {
        "wide": JOB["tables"]["wide"] | KINDS[kind],
        "deep": JOB["tables"]["deep"] | KINDS[kind] | {"dim": 6},
    }
    trainer, generator = Trainer(tmp_path / "log", tables), np.random.default_rng(3)
    trainer.commit()
    exporter = make_exporter(trainer.log, tmp_path / "export", base_every_epochs=3)
    runner = ExportRunner(trainer.log, exporter)
    follower = Follower(tmp_path / "export", piece_samples=BATCH)
    for epoch in range(8):
        samples = [sample(generator, 40 + 10 * epoch) for _ in range(BATCH)]
        runner.catch_up()
        follower.poll()
        assert follower.version is not None and follower.version.epoch == epoch
        scores = follower.predict(samples)
        learned = trainer.learn(trainer.decoder.decode_samples(samples))
        np.testing.assert_allclose(scores, learned, rtol=0, atol=1e-6)
        trainer.commit()
    runner.catch_up()
    follower.poll()
    late = Follower(tmp_path / "export", piece_samples=BATCH)
    late.poll()
    assert np.array_equal(late.predict(samples), follower.predict(samples))
    assert np.ptp(late.predict(samples)) > 0.05
    exporter.close()
