"""The issue's own proof: KuaiRand through a real Kafka topic and a real Redis, killed five times, learned exactly once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from examples.kuairand import SOURCE_DIR, join
from streamtrain.config import load_job
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.recovery import recover
from streamtrain.samples.decoder import Decoder
from streamtrain.serving import Follower
from streamtrain.training.learner import Learner
from streamtrain.training.prequential import Accumulator
from tests.daemon import Daemon, inspected, streamtrain, until
from tests.servers import KafkaServer, RedisServer

pytestmark = [pytest.mark.kafka, pytest.mark.redis]

ROWS = 222_869
CONFIG = Path(__file__).resolve().parents[2] / "examples" / "kafka.toml"


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (SOURCE_DIR / "impressions.parquet").exists():
        pytest.skip(f"NOT TESTED on KuaiRand: it is not in {SOURCE_DIR}")
    path = tmp_path_factory.mktemp("kuairand") / "samples.parquet"
    pq.write_table(join(SOURCE_DIR), path)
    return path


def test_every_row_is_learned_exactly_once_over_five_kills(
    kafka: KafkaServer, redis_server: RedisServer, samples: Path, tmp_path: Path
) -> None:
    topic = "kuairand-five-kills"
    produced = streamtrain(
        "produce",
        samples,
        "--kafka",
        kafka.bootstrap_servers,
        "--topic",
        topic,
        "--partitions",
        "4",
        "--key",
        "user_id",
    )
    assert produced.returncode == 0, produced.stderr
    log, exports = tmp_path / "model", tmp_path / "exports"
    environment = {
        "STREAMTRAIN__SOURCE__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "STREAMTRAIN__SOURCE__TOPIC": topic,
        "STREAMTRAIN__STORE__URL": redis_server.url,
        "STREAMTRAIN__LOG__PATH": str(log),
        "STREAMTRAIN__LOG__EPOCH_INTERVAL_S": "0.2",
        "STREAMTRAIN__LOG__BASE_EVERY_EPOCHS": "20",
        "STREAMTRAIN__EXPORTS__0__PATH": str(exports),
    }
    config = tmp_path / "kafka.toml"
    config.write_text(CONFIG.read_text())
    for kill in range(1, 6):
        with Daemon(config, "--until-end", **environment) as daemon:
            until(lambda: _learned(log) >= ROWS * kill // 7 or not daemon.running, f"kill {kill}")  # noqa: B023
            assert daemon.running, daemon.text[-4000:]
            daemon.kill()
    with Daemon(config, "--until-end", **environment) as daemon:
        assert daemon.wait() == 0, daemon.text[-4000:]

    found = inspected(log)
    assert found["samples"] == ROWS
    assert found["bad_samples"] == 0
    assert sum(found["positions"].values()) == ROWS
    verified = streamtrain("verify", log)
    assert verified.returncode == 0, verified.stdout
    replayed = streamtrain("replay", log, str(found["epoch"] - 1))
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr

    follower = Follower(exports)
    assert follower.wait_for(found["epoch"], 30).lineage.samples_total == ROWS
    table = pq.read_table(samples).slice(ROWS - ROWS // 10)
    served = follower.predict(table)
    trained = _trainer_probabilities(config, environment, log, table.to_pylist())
    assert np.abs(served - trained).max() < 1e-6
    clicks = table["is_click"].to_numpy()
    assert _auc(served, clicks) == pytest.approx(_auc(trained, clicks), abs=1e-6)
    assert _auc(served, clicks) > 0.7

    assert asyncio.run(_group_offsets(kafka, "streamtrain-kuairand", topic)) == found["positions"]


def _learned(log: Path) -> int:
    """Samples committed so far, read as any other process would."""
    if not (log / "model.json").exists():
        return 0
    opened = EpochLog.open(log)
    head = opened.head()
    return 0 if head is None else opened.describe(head).samples_total


def _trainer_probabilities(config: Path, environment: dict[str, str], log: Path, rows: list) -> np.ndarray:  # type: ignore[type-arg]
    job = load_job(config, environment)
    learner = Learner(job)
    learner.restore(recover(EpochLog.open(log)), sequential=False)
    batch = Decoder(job.sample_schema).decode_samples(rows)
    size = job.training.batch_size
    logits = []
    for start in range(0, batch.size, size):
        part = batch.slice(start, min(start + size, batch.size))
        padded = learner.dense.bucket(part.size)
        activations = learner.sparse.score(part, padded)
        dense = np.zeros((padded, part.dense.shape[1]), np.float32)
        logits.append(learner.dense.predict(activations.pooled, activations.sequences, dense)[: part.size])
    return 1 / (1 + np.exp(-np.concatenate(logits).astype(np.float64)))


def _auc(probabilities: np.ndarray, clicks: np.ndarray) -> float:
    measured = Accumulator(1)
    p = np.clip(probabilities.astype(np.float64), 1e-9, 1 - 1e-9)
    measured.add(
        np.log(p / (1 - p)).astype(np.float32),
        clicks.astype(np.float32)[:, None],
        np.ones(len(clicks), np.float32),
    )
    return measured.quality(0).auc


async def _group_offsets(kafka: KafkaServer, group: str, topic: str) -> dict[str, int]:
    from aiokafka.admin import AIOKafkaAdminClient

    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
    await admin.start()
    try:
        offsets = await admin.list_consumer_group_offsets(group)
    finally:
        await admin.close()
    return {f"{tp.topic}:{tp.partition}": meta.offset for tp, meta in offsets.items() if tp.topic == topic}
