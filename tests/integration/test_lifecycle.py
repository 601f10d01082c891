"""A job whose rows are admitted, expire and fade: killed, with its rows in memory and in Redis; replayed, followed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamtrain.log.epoch_log import EpochLog
from streamtrain.serving import Follower
from streamtrain.serving.manifest import MANIFEST
from tests.daemon import Daemon, inspected, streamtrain, until
from tests.exporting import held
from tests.integration.test_daemon import JOB, config, trainer_scores, write

LIFECYCLE = """
[tables.main.admission]
kind = "counting_bloom"
threshold = 3
expected_ids = 2000
halve_every_steps = 40
[tables.main.expiry]
after_steps = 30
sweep_steps = 8
[tables.main.decay]
every_steps = 10
weights = 0.95
slots = 0.9
[tables.counted]
dim = 4
unadmitted = "zero"
optimizer = {{ kind = "ftrl", l1 = 0.01 }}
[tables.counted.admission]
kind = "count"
threshold = 2
ids_max = 300
[tables.counted.expiry]
norm_min = 0.001
sweep_steps = 5
[tables.own]
dim = 4
[tables.own.admission]
kind = "tests.rules:EveryOther"
first = true
[tables.own.expiry]
rule = "tests.rules:weak_and_rare"
sweep_steps = 7
[model]
"""
SLOTS = """
user = {{ table = "main" }}
item = {{ type = "string", table = "main" }}
recent = {{ kind = "sequence", shares = "item", type = "string", length_max = 5, pooling = "mean" }}
country = {{ table = "counted" }}
ad = {{ table = "own" }}
price = {{ kind = "dense" }}
"""
TABLES = (
    JOB[: JOB.index("user = ")] + SLOTS + JOB[JOB.index("[tables.main]") :].replace("[model]\n", LIFECYCLE)
).replace('/exports"', '/exports"\nbase_every_epochs = 3')
SLOW = {
    "STREAMTRAIN__LOG__EPOCH_INTERVAL_S": "0.05",
    "STREAMTRAIN__TRAINING__BATCH_SIZE": "16",
    "STREAMTRAIN__LOG__BASE_EVERY_EPOCHS": "7",
}


def samples(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Users that come for a while and go, one-time items, and records that overflow."""
    rng = np.random.default_rng(start)
    made = []
    for i in range(start, start + count):
        made.append(
            {
                "user": int(i // 400 * 30 + rng.integers(40)),
                "item": f"i{rng.integers(30) if rng.random() < 0.6 else 1_000_000 + i}",
                "recent": [f"i{x}" for x in rng.integers(40, size=rng.integers(0, 4))],
                "country": int(rng.integers(10_000) if rng.random() < 0.5 else rng.integers(5)),
                "ad": int(rng.integers(500)),
                "price": 3.4e38 if i % 1500 == 700 else float(rng.normal()),
                "click": int(rng.random() < 0.4),
                "time_ms": 1_700_000_000_000 + i * 10,
            }
        )
    return made


@pytest.mark.parametrize("stored", ["memory", pytest.param("redis", marks=pytest.mark.redis)])
def test_what_was_killed_is_replayed_to_the_bit_and_followers_agree_whenever_they_began(
    stored: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    rows = samples(4500)
    job, log = config(tmp_path, follow=True, text=TABLES), tmp_path / "model"
    environment = dict(SLOW)
    if stored == "redis":
        environment["STREAMTRAIN__STORE__URL"] = request.getfixturevalue("redis_server").url
    write(tmp_path / "samples.jsonl", [])
    early: Follower | None = None
    parts = 3
    for kill in range(parts):
        with Daemon(job, **environment) as daemon:
            write(tmp_path / "samples.jsonl", rows[1500 * kill : 1500 * (kill + 1)], "a")
            before = _learned(log)
            until(lambda: _learned(log) > before or not daemon.running, "some epochs")  # noqa: B023
            if early is None:
                until(lambda: (tmp_path / "exports" / MANIFEST).exists(), "an export")
                early = Follower(tmp_path / "exports")
                early.poll()
            if kill < parts - 1:
                daemon.kill()
            else:
                until(lambda: _read(log) == 4500 or not daemon.running, "all samples")
                assert daemon.stop() == 0
    assert early is not None
    found = inspected(log)
    assert found["quarantined_minibatches"] >= 1
    assert streamtrain("verify", log).returncode == 0
    for epoch in (found["epoch"] // 2, found["epoch"]):
        replayed = streamtrain("replay", log, str(epoch))
        assert replayed.returncode == 0, replayed.stdout + replayed.stderr
        assert "every bit is the same" in replayed.stdout

    opened = EpochLog.open(log)
    records = [opened.read(epoch) for epoch in opened.epochs()]
    for name, filtered in (("main", True), ("counted", True), ("own", False)):
        assert any(len(record.tables[name].ids) for record in records)
        assert (name in records[-1].filters) == filtered
    assert all(len(record.rules["own/turn"]) == 1 for record in records)
    assert sum(len(record.tables["main"].tombstones) for record in records) > 100
    assert sum(len(record.tables["own"].tombstones) for record in records) > 10

    early.wait_for(found["epoch"], 20)
    late = Follower(tmp_path / "exports")
    late.wait_for(found["epoch"], 20)
    assert held(early) == held(late)
    unseen = [*rows[-200:], {"user": 10**9, "item": "never", "country": 10**6, "click": 0, "time_ms": 0}, {}]
    unseen = [row for row in unseen if row.get("price", 0) < 1e38]
    expected = trainer_scores(job, log, found["epoch"], unseen)
    assert np.abs(early.predict(unseen) - expected).max() < 1e-6
    assert np.array_equal(early.predict(unseen), late.predict(unseen))


def _learned(log: Path) -> int:
    opened = EpochLog.open(log) if (log / "model.json").exists() else None
    head = None if opened is None else opened.head()
    return 0 if opened is None or head is None else opened.describe(head).samples_total


def _read(log: Path) -> int:
    opened = EpochLog.open(log)
    return _learned(log) + sum(opened.describe(epoch).quarantined_samples for epoch in opened.epochs())
