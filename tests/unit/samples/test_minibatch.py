"""Minibatches: every sample once and in order, every record in one span, wherever chunks were cut."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.errors import BadSample, SourceError
from streamtrain.samples.batch import Ragged, SampleBatch
from streamtrain.samples.decoder import DecodedChunk
from streamtrain.samples.minibatch import Minibatch, Minibatcher
from streamtrain.samples.positions import PositionTracker
from streamtrain.sources import Gap, Span


@dataclass(frozen=True)
class Run:
    """Records of a partition: per offset from `first` on, `s` a sample, `b` a bad record, `-` nothing."""

    partition: str
    first: int
    records: str

    def cut(self, at: int) -> list[Run]:
        return [
            Run(self.partition, self.first, self.records[:at]),
            Run(self.partition, self.first + at, self.records[at:]),
        ]

    def decoded(self) -> DecodedChunk:
        """Each sample's ids are its own offset, as often as the offset modulo 3."""
        offsets = np.array([self.first + i for i, kind in enumerate(self.records) if kind == "s"], np.int64)
        size = len(offsets)
        lengths = offsets % 3
        ids = Ragged(np.repeat(offsets, lengths).astype(np.uint64), np.concatenate([[0], np.cumsum(lengths)]))
        batch = SampleBatch(
            size,
            {"id": ids},
            np.zeros((size, 0), np.float32),
            offsets.reshape(-1, 1).astype(np.float32),
            np.ones(size, np.float32),
            offsets,
            offsets,
        )
        bad = [
            BadSample("json", "bad", partition=self.partition, offset=self.first + i)
            for i, kind in enumerate(self.records)
            if kind == "b"
        ]
        return DecodedChunk(
            self.partition, self.first, self.first + len(self.records), offsets, batch, tuple(bad)
        )


@st.composite
def streams(draw: st.DrawFn) -> list[Run]:
    """Runs of two partitions, each partition's following one another."""
    ends = {"a": draw(st.integers(0, 5)), "b": 0}
    runs = []
    for _ in range(draw(st.integers(0, 8))):
        partition = draw(st.sampled_from(["a", "b"]))
        records = draw(st.text("sssb-", max_size=12))
        runs.append(Run(partition, ends[partition], records))
        ends[partition] += len(records)
    return runs


def minibatches(runs: list[Run], batch_size: int) -> list[Minibatch]:
    """All minibatches of the runs, without regard to time."""
    minibatcher = Minibatcher(batch_size, math.inf)
    found: list[Minibatch] = []
    for run in runs:
        minibatcher.add(run.decoded(), 0.0)
        while (minibatch := minibatcher.take(0.0)) is not None:
            found.append(minibatch)
    while (minibatch := minibatcher.flush()) is not None:
        found.append(minibatch)
    assert minibatcher.pending == 0 and minibatcher.deadline_ms() is None
    return found


@given(streams(), st.integers(1, 6))
def test_every_sample_is_in_one_minibatch_in_order(runs: list[Run], batch_size: int) -> None:
    found = minibatches(runs, batch_size)
    expected = [run.decoded() for run in runs]
    assert [t for m in found for t in m.batch.event_time_ms.tolist()] == [
        o for c in expected for o in c.offsets.tolist()
    ]
    assert [i for m in found for i in m.batch.ids["id"].values.tolist()] == [
        i for c in expected for i in c.batch.ids["id"].values.tolist()
    ]
    assert all(m.batch.size == batch_size for m in found[:-2])
    for minibatch in found:
        assert (
            minibatch.batch.ids["id"].offsets[0] == 0 and len(minibatch.batch.labels) == minibatch.batch.size
        )


@given(streams(), st.integers(1, 6))
def test_spans_hold_every_record_once_and_say_how_many_samples(runs: list[Run], batch_size: int) -> None:
    kinds = {(run.partition, run.first + i): kind for run in runs for i, kind in enumerate(run.records)}
    tracker = PositionTracker({run.partition: run.first for run in reversed(runs)}, sequential=False)
    for minibatch in minibatches(runs, batch_size):
        tracker.advance(minibatch.spans)
        held = [
            (span, kinds.pop((span.partition, offset)))
            for span in minibatch.spans
            for offset in range(span.first, span.next)
        ]
        for span in minibatch.spans:
            assert span.samples == sum(kind == "s" for holder, kind in held if holder is span)
        assert len(minibatch.bad) == sum(kind == "b" for _, kind in held)
        assert sum(span.samples for span in minibatch.spans) == minibatch.batch.size
        for one, two in zip(minibatch.spans, minibatch.spans[1:]):
            assert one.partition != two.partition or one.next != two.first
    assert not kinds


@given(streams(), st.integers(1, 6), st.data())
def test_where_chunks_are_cut_makes_no_difference(
    runs: list[Run], batch_size: int, data: st.DataObject
) -> None:
    finer = [piece for run in runs for piece in run.cut(data.draw(st.integers(0, len(run.records))))]
    one, two = minibatches(runs, batch_size), minibatches(finer, batch_size)
    assert [m.spans for m in one] == [m.spans for m in two]
    assert [[b.offset for b in m.bad] for m in one] == [[b.offset for b in m.bad] for m in two]


def test_a_minibatch_waits_for_its_deadline_and_no_longer() -> None:
    minibatcher = Minibatcher(4, 50.0)
    assert minibatcher.take(1_000.0) is None and minibatcher.deadline_ms() is None
    minibatcher.add(Run("a", 0, "ss").decoded(), 100.0)
    minibatcher.add(Run("a", 2, "sb").decoded(), 130.0)
    assert minibatcher.pending == 3 and minibatcher.deadline_ms() == 150.0
    assert minibatcher.take(149.0) is None
    minibatch = minibatcher.take(150.0)
    assert minibatch is not None and minibatch.spans == (Span("a", 0, 4, 3),)
    assert minibatch.first_arrival_ms == 100.0 and [bad.offset for bad in minibatch.bad] == [3]


def test_what_a_full_minibatch_leaves_waits_since_it_arrived_itself() -> None:
    minibatcher = Minibatcher(2, 50.0)
    minibatcher.add(Run("a", 0, "s").decoded(), 100.0)
    minibatcher.add(Run("a", 1, "ss").decoded(), 140.0)
    full = minibatcher.take(140.0)
    assert full is not None and full.spans == (Span("a", 0, 2, 2),)
    assert minibatcher.deadline_ms() == 190.0


def test_records_that_are_all_bad_advance_the_position_without_a_sample() -> None:
    minibatcher = Minibatcher(2, 50.0)
    minibatcher.add(Run("a", 0, "bb-").decoded(), 0.0)
    assert minibatcher.take(49.0) is None
    minibatch = minibatcher.take(50.0)
    assert minibatch is not None and minibatch.batch.size == 0
    assert minibatch.spans == (Span("a", 0, 3, 0),) and len(minibatch.bad) == 2


def test_a_full_minibatch_of_one_chunk_is_a_view() -> None:
    decoded = Run("a", 0, "s" * 8).decoded()
    minibatcher = Minibatcher(4, 50.0)
    minibatcher.add(decoded, 0.0)
    for _ in range(2):
        minibatch = minibatcher.take(0.0)
        assert minibatch is not None and np.shares_memory(minibatch.batch.labels, decoded.batch.labels)


def test_a_skipped_or_repeated_record_is_refused_and_nothing_moves() -> None:
    tracker = PositionTracker({"a": 5}, sequential=False)
    for first in (4, 6):
        with pytest.raises(SourceError, match=r"a: the source gave records \d to 9 where 5 comes next"):
            tracker.advance([Span("b", 0, 3, 3), Span("a", first, 9, 3)])
    assert tracker.positions == {"a": 5}
    tracker.advance([Span("b", 0, 3, 3), Span("a", 5, 9, 3)])
    assert tracker.positions == {"a": 9, "b": 3}


def test_a_gap_moves_a_position_either_way_or_away_and_must_begin_where_it_stands() -> None:
    tracker = PositionTracker({"a": 5, "b": 7, "c": 9}, sequential=False)
    for wrong in (Gap("a", 4, 0, "shrunk"), Gap("d", 0, 4, "retention")):
        with pytest.raises(
            SourceError, match=r"the source skips records from \d on where (5|None) comes next"
        ):
            tracker.skip([Gap("b", 7, 1, "shrunk"), wrong])
    assert tracker.positions == {"a": 5, "b": 7, "c": 9}
    tracker.skip([Gap("a", 5, 8, "retention"), Gap("b", 7, 0, "shrunk"), Gap("c", 9, None, "removed")])
    assert tracker.positions == {"a": 8, "b": 0}
    tracker.advance([Span("a", 8, 9, 1), Span("b", 0, 1, 1)])


def test_only_the_last_partition_keeps_a_position_where_they_follow_one_another() -> None:
    tracker = PositionTracker({"day1.jsonl": 7}, sequential=True)
    tracker.advance([Span("day1.jsonl", 7, 9, 2), Span("day2.jsonl", 0, 4, 4)])
    assert tracker.positions == {"day2.jsonl": 4}


def test_a_flood_of_refused_records_does_not_wait_for_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamtrain.samples.minibatch.REFUSED_MAX", 5)
    minibatcher = Minibatcher(batch_size=10, linger_ms=math.inf)
    minibatcher.add(Run("p", 0, "sbbb").decoded(), 0)
    assert minibatcher.take(0) is None
    minibatcher.add(Run("p", 4, "bbs").decoded(), 0)
    cut = minibatcher.take(0)
    assert cut is not None
    assert (cut.batch.size, len(cut.bad), cut.spans) == (2, 5, (Span("p", 0, 7, 2),))
    minibatcher.add(Run("p", 7, "bbbb").decoded(), 0)
    assert minibatcher.take(0) is None
