"""Admission, expiry and decay in the committed state: bases, replay, rollback, recovery; in one process."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamtrain.config import Job
from streamtrain.errors import ConfigError
from streamtrain.identity import check_same_model
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.fold import fold
from streamtrain.log.inspect import inspect
from streamtrain.log.record import EpochRecord, FilterRows, TableRows
from streamtrain.log.recovery import recover
from streamtrain.log.rollback import rollback
from streamtrain.log.verify import verify
from streamtrain.replay import _compare, replay
from streamtrain.service import Service
from streamtrain.sources import Chunk
from streamtrain.training.learner import Learner
from tests import fakes
from tests.fakes import ScriptedSource

LIFE: dict[str, Any] = {
    "dim": 1,
    "admission": {
        "kind": "counting_bloom",
        "threshold": 2,
        "expected_ids": 100,
        "halve_every_steps": 20,
    },
    "expiry": {"after_steps": 9, "sweep_steps": 4},
    "decay": {"every_steps": 3, "weights": 0.9, "slots": 0.9},
}


@pytest.fixture(autouse=True)
def _cold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Learner, "warm", classmethod(lambda cls, job: cls(job)))
    monkeypatch.setattr(Learner, "warm_up", lambda self: None)

    async def read_span(_: ScriptedSource, partition: str, first: int, next: int) -> list[Chunk]:
        return [chunk(first, next - first)]

    monkeypatch.setattr(ScriptedSource, "read_span", read_span)


def job(folder: Path, table: dict[str, Any] = LIFE) -> Job:
    return fakes.job(folder, tables={"main": table})


def chunk(first: int, count: int) -> Chunk:
    """Users that come in waves, each a few times, and some that come once."""
    records = [
        json.dumps({"user": n // 40 * 10 + n * n % 13 if n % 3 else 10**6 + n, "click": n % 2}).encode()
        for n in range(first, first + count)
    ]
    return fakes.chunk(first, records)


async def learned(folder: Path, first: int, count: int, table: dict[str, Any] = LIFE) -> EpochLog:
    """Chunks with pauses between, so that there are several epochs."""
    pauses = [asyncio.Event() for _ in range(3)]
    part = count // 4
    ScriptedSource.script = [
        step for i in range(4) for step in (chunk(first + i * part, part), *pauses[i : i + 1])
    ]
    committed = iter(pauses)

    def release(_: EpochRecord) -> None:
        if (pause := next(committed, None)) is not None:
            pause.set()

    await asyncio.wait_for(Service(job(folder, table), until_end=True, on_commit=release).run(), 60)
    ScriptedSource.script = ()
    return EpochLog.open(folder / "model")


def held(records: Any) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """The rows and the filter that records leave."""
    rows: dict[int, bytes] = {}
    blocks: dict[int, bytes] = {}
    for record in records:
        table, changed = record.tables["main"], record.filters["main"]
        rows |= {
            id: b"".join(getattr(table, c)[i].tobytes() for c in TableRows.__slots__[1:5])
            for i, id in enumerate(table.ids.tolist())
        }
        blocks |= {id: value.tobytes() for id, value in zip(changed.ids.tolist(), changed.values)}
        for id in table.tombstones.tolist():
            rows.pop(id, None)
        for id in changed.tombstones.tolist():
            blocks.pop(id, None)
    return rows, blocks


async def test_what_recovers_is_folded_and_replayed_is_the_same_with_its_filter(tmp_path: Path) -> None:
    await learned(tmp_path, 0, 400)
    log = await learned(tmp_path, 400, 400)
    head = log.head() or 0
    records = [log.read(epoch) for epoch in range(head + 1)]
    rows, blocks = held(records)
    assert rows and blocks and any(len(record.tables["main"].tombstones) for record in records)
    assert any(len(record.filters["main"].tombstones) for record in records)
    for epoch in range(1, head + 1):
        found = await replay(job(tmp_path), log, epoch)
        assert found.equal, found.differences
    fold(log.path, head // 2)
    assert held(recover(log)) == (rows, blocks)
    fold(log.path)
    base = log.read_base(head)
    assert held([base]) == (rows, blocks)
    assert base.filters["main"].ids.tolist() == sorted(blocks)
    assert verify(log.path).ok
    assert inspect(log.path)["filters"] == {"main": {"entries": len(blocks), "bytes": 72 * len(blocks)}}

    by_base, by_epochs = (Learner(job(tmp_path)) for _ in range(2))
    by_base.restore([base], sequential=False)
    by_epochs.restore(records, sequential=False)
    for learner in (by_base, by_epochs):
        batch = fakes.Decoder(job(tmp_path).sample_schema).decode(chunk(800, 100)).batch
        for step, start in enumerate(range(0, 96, 8), records[-1].step_next):
            assert learner.step(batch.slice(start, start + 8), step) is not None
    ours, theirs = by_base.sparse.cut(), by_epochs.sparse.cut()
    for column in TableRows.__slots__:
        assert getattr(ours["main"], column).tobytes() == getattr(theirs["main"], column).tobytes()
    left, right = by_base.sparse.cut_filters()[0]["main"], by_epochs.sparse.cut_filters()[0]["main"]
    for column in FilterRows.__slots__:
        assert getattr(left, column).tobytes() == getattr(right, column).tobytes()


async def test_a_rollback_returns_the_filter_and_the_rows_that_expired_since(tmp_path: Path) -> None:
    log = await learned(tmp_path, 0, 400)
    back = (log.head() or 0) // 2
    then = held(recover(log, upto=back))
    assert then != held(recover(log))
    record = rollback(log, back)
    assert held(recover(log)) == then and len(record.filters["main"].ids)
    assert verify(log.path).ok
    assert (await replay(job(tmp_path), log, record.epoch)).equal
    log = await learned(tmp_path, 400, 200)
    assert (await replay(job(tmp_path), log, log.head() or 0)).equal


async def test_a_filter_that_came_out_otherwise_is_named(tmp_path: Path) -> None:
    log = await learned(tmp_path, 0, 100)
    record = log.read(1)
    changed = record.filters["main"]
    other = dataclasses.replace(changed, values=changed.values ^ np.uint8(1))
    again = dataclasses.replace(record, filters={"main": other}, rules={"main/x": np.zeros(1)})
    assert _compare(record, again) == (False, ["filters/main/values", "rules/main/x"])


async def test_admission_expiry_and_decay_decide_the_model_and_cannot_change_while_it_lives(
    tmp_path: Path,
) -> None:
    log = await learned(tmp_path, 0, 40)
    check_same_model(job(tmp_path), log.model.job, "log")
    for key, value in (("decay", {"every_steps": 4, "weights": 0.9}), ("expiry", {"after_steps": 8})):
        with pytest.raises(ConfigError, match=f"tables.main.{key}"):
            check_same_model(job(tmp_path, LIFE | {key: value}), log.model.job, "log")
    with pytest.raises(ConfigError, match=r"tables\.main\.admission\.threshold"):
        check_same_model(
            job(tmp_path, LIFE | {"admission": LIFE["admission"] | {"threshold": 3}}), log.model.job, "log"
        )
