"""Redoing epochs of a daemon that ran in this process; the command itself is tested end to end elsewhere."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path

import numba
import numpy as np
import pytest

from streamtrain.errors import ConfigError, EpochMissing, OffsetOutOfRange
from streamtrain.log.epoch_log import EpochLog
from streamtrain.replay import _compare, replay
from streamtrain.service import Service
from streamtrain.sources import Chunk
from streamtrain.training import learner, runtime
from streamtrain.training.learner import Learner
from tests.fakes import ScriptedSource, chunk, job


@pytest.fixture(autouse=True)
def _cold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Learner, "warm", classmethod(lambda cls, job: cls(job)))


async def learned(folder: Path, *script: Chunk, **training: int) -> EpochLog:
    ScriptedSource.script = script
    made = job(folder, training={"batch_size": 8, "linger_ms": 1} | training)
    await asyncio.wait_for(Service(made, until_end=True).run(), 60)
    ScriptedSource.script = ()
    return EpochLog.open(folder / "model")


async def test_an_epoch_is_redone_to_the_bit_though_batch_size_and_windows_have_changed_since(
    tmp_path: Path,
) -> None:
    await learned(tmp_path, chunk(0, 100), window_samples=100)
    log = await learned(tmp_path, chunk(100, 150), batch_size=16, window_samples=120)
    head = log.head() or 0
    for epoch in range(1, head + 1):
        found = await replay(job(tmp_path, training={"batch_size": 32}), log, epoch)
        assert found.equal and found.differences == [] and found.samples == log.read(epoch).samples


async def test_an_epoch_is_redone_with_as_many_threads_as_it_notes_and_with_one_where_it_notes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = await learned(tmp_path, chunk(0, 20))
    record = log.read(1)
    assert record.notes["dense_threads"] == "2"
    # This process has two already: asking for another number is refused, which shows that it was asked for.
    for notes, threads in (
        (record.notes | {"dense_threads": "3"}, 3),
        ({name: note for name, note in record.notes.items() if name != "dense_threads"}, 1),
    ):
        other = dataclasses.replace(record, notes=notes)
        monkeypatch.setattr(log, "read", lambda epoch, other=other: other)
        with pytest.raises(ConfigError, match=f"training.dense_threads = {threads}, but .* with 2 already"):
            await replay(job(tmp_path), log, 1)


async def test_a_record_that_is_gone_from_the_source_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = await learned(tmp_path, chunk(0, 20))

    async def compacted(_: ScriptedSource, partition: str, first: int, next: int) -> list[Chunk]:
        return [chunk(first, next - first - 1, partition=partition, gap=1)]

    monkeypatch.setattr(ScriptedSource, "read_span", compacted)
    with pytest.raises(OffsetOutOfRange, match="retention or compaction"):
        await replay(job(tmp_path), log, 1)


async def test_bits_that_differ_are_told_with_what_is_not_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    then = dict(runtime.runtime()) | {"numba": "0.1", "vectors": "neon"}
    with monkeypatch.context() as past:
        past.setattr(learner, "runtime_note", lambda: json.dumps(then))
        log = await learned(tmp_path, chunk(0, 20))
    assert json.loads(log.read(0).notes["runtime"]) == json.loads(log.read(1).notes["runtime"]) == then
    found = await replay(job(tmp_path), log, 1)
    assert found.equal and [text.split()[0] for text in found.runtime] == ["numba", "vectors"]

    async def others(_: ScriptedSource, partition: str, first: int, next: int) -> list[Chunk]:
        return [
            dataclasses.replace(c, records=list(reversed(c.records))) for c in [chunk(first, next - first)]
        ]

    monkeypatch.setattr(ScriptedSource, "read_span", others)
    found = await replay(job(tmp_path), log, 1)
    assert not found.equal and f"numba was 0.1, is {numba.__version__}" in found.runtime


def test_a_record_that_does_not_tell_what_it_was_learned_with_differs_in_nothing() -> None:
    assert runtime.differences({}) == []
    assert runtime.differences({"runtime": runtime.runtime_note()}) == []


async def test_the_genesis_has_nothing_to_redo(tmp_path: Path) -> None:
    log = await learned(tmp_path)
    with pytest.raises(EpochMissing):
        await replay(job(tmp_path), log, 0)


async def test_a_comparison_names_what_differs_and_nothing_else(tmp_path: Path) -> None:
    log = await learned(tmp_path, chunk(0, 20))
    record = log.read(1)
    rows = record.tables["main"]
    weights = rows.weights.copy()
    weights.view(np.uint32)[0, 0] ^= 1
    assert _compare(record, dataclasses.replace(record, writer="other", committed_at_ms=1, notes={})) == (
        True,
        [],
    )
    other = dataclasses.replace(
        record,
        tables={"main": dataclasses.replace(rows, weights=weights)},
        bad_samples=record.bad_samples + 1,
        metrics={},
    )
    equal, differences = _compare(record, other)
    assert not equal
    assert {"tables/main/weights", "bad_samples", "metrics/total/sums"} <= set(differences)
    assert "tables/main/ids" not in differences and not any(name.startswith("dense/") for name in differences)
