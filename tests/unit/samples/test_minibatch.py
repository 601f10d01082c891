"""Minibatches: every sample once and in order, every record in one span, wherever chunks were cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.errors import BadSample, SourceError
from streamtrain.samples.batch import Ragged, SampleBatch
from streamtrain.samples.decoded import DecodedChunk
from streamtrain.samples.minibatch import Minibatch, Minibatcher
from streamtrain.samples.positions import LeavesLearned, PositionTracker
from streamtrain.sources import Gap, Span

LEAVES = {"s": "s", "3": "sss", "m": "sbs", "t": "bsb", "x": "bb", "0": ""}
"""Records of several leaves, good and bad ones, and one of none."""


@dataclass(frozen=True)
class Run:
    """Records of a partition: per offset from `first` on what `LEAVES` says, or `b` a bad record, `-` nothing."""

    partition: str
    first: int
    records: str

    def cut(self, at: int) -> list[Run]:
        return [
            Run(self.partition, self.first, self.records[:at]),
            Run(self.partition, self.first + at, self.records[at:]),
        ]

    def places(self) -> list[tuple[int, int | None, bool, str]]:
        """Per leaf: offset, number (None: the record), whether it is the last of its record, `s` or `b`."""
        found: list[tuple[int, int | None, bool, str]] = []
        for offset, record in enumerate(self.records, self.first):
            if record == "b":
                found.append((offset, None, True, "b"))
            leaves = LEAVES.get(record, "")
            found += [(offset, leaf, leaf + 1 == len(leaves), kind) for leaf, kind in enumerate(leaves)]
        return found

    def decoded(self) -> DecodedChunk:
        """Each sample's ids are its own offset, as often as the offset modulo 3."""
        good = [place for place in self.places() if place[3] == "s"]
        offsets = np.array([offset for offset, *_ in good], np.int64)
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
            np.array([leaf for _, leaf, *_ in good], np.int64),
        )
        return DecodedChunk(
            self.partition,
            self.first,
            self.first + len(self.records),
            offsets,
            batch.record_time_ms,
            np.array([last for _, _, last, _ in good], np.bool_),
            batch,
            tuple(
                BadSample("json", "bad", partition=self.partition, offset=offset, leaf=leaf)
                for offset, leaf, _, kind in self.places()
                if kind == "b"
            ),
        )


@st.composite
def streams(draw: st.DrawFn) -> list[Run]:
    """Runs of two partitions, each partition's following one another."""
    ends = {"a": draw(st.integers(0, 5)), "b": 0}
    runs = []
    for _ in range(draw(st.integers(0, 8))):
        partition = draw(st.sampled_from(["a", "b"]))
        records = draw(st.text("sssb-3mtx0", max_size=12))
        runs.append(Run(partition, ends[partition], records))
        ends[partition] += len(records)
    return runs


def places_of(batch: SampleBatch) -> list[tuple[int, int]]:
    """(offset, leaf) of each sample."""
    return list(zip(batch.event_time_ms.tolist(), batch.record_time_ms.tolist()))


class Decoding(Protocol):
    def decoded(self) -> DecodedChunk: ...


def minibatches(runs: Sequence[Decoding], batch_size: int) -> list[Minibatch]:
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
    assert [place for m in found for place in places_of(m.batch)] == [
        place for c in expected for place in zip(c.offsets.tolist(), c.leaves.tolist())
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
    kinds = {(run.partition, offset, leaf): kind for run in runs for offset, leaf, _, kind in run.places()}
    ends = {run.partition: (run.first + len(run.records), 0) for run in runs if run.records}
    tracker = PositionTracker({run.partition: run.first for run in reversed(runs)}, sequential=False)
    for minibatch in minibatches(runs, batch_size):
        tracker.advance(minibatch.spans)
        held = [
            (span, kinds.pop(place))
            for span in minibatch.spans
            for place in list(kinds)
            if place[0] == span.partition and span.holds(*place[1:])
        ]
        for span in minibatch.spans:
            assert span.samples == sum(kind == "s" for holder, kind in held if holder is span)
        assert len(minibatch.bad) == sum(kind == "b" for _, kind in held)
        assert sum(span.samples for span in minibatch.spans) == minibatch.batch.size
        for one, two in zip(minibatch.spans, minibatch.spans[1:]):
            assert one.partition != two.partition or one.end != two.begin
    assert not kinds
    for partition, end in ends.items():
        assert (tracker.positions[partition], tracker.leaves.get(partition, 0)) == end


@given(streams(), st.integers(1, 6), st.data())
def test_where_chunks_are_cut_makes_no_difference(
    runs: list[Run], batch_size: int, data: st.DataObject
) -> None:
    finer = [piece for run in runs for piece in run.cut(data.draw(st.integers(0, len(run.records))))]
    one, two = minibatches(runs, batch_size), minibatches(finer, batch_size)
    assert [m.spans for m in one] == [m.spans for m in two]
    assert [[str(b) for b in m.bad] for m in one] == [[str(b) for b in m.bad] for m in two]


@given(streams(), st.integers(1, 6), st.data())
def test_looking_ahead_takes_nothing_and_shows_the_very_batch_that_comes(
    runs: list[Run], batch_size: int, data: st.DataObject
) -> None:
    minibatcher = Minibatcher(batch_size, math.inf)
    found: list[Minibatch] = []
    shown: SampleBatch | None = None

    def look() -> None:
        nonlocal shown
        if data.draw(st.booleans()):
            shown = minibatcher.ahead()
            assert (shown is None) == (minibatcher.pending < batch_size)

    def took(minibatch: Minibatch | None) -> bool:
        nonlocal shown
        if minibatch is None:
            return False
        assert shown is None or minibatch.batch is shown
        shown = None
        found.append(minibatch)
        return True

    for run in runs:
        minibatcher.add(run.decoded(), 0.0)
        look()
        # Fewer are taken than there are, now and then: more is added behind what was looked at.
        while data.draw(st.booleans()) and took(minibatcher.take(0.0)):
            look()
    while took(minibatcher.take(0.0)):
        look()
    while took(minibatcher.flush()):
        look()
    expected = minibatches(runs, batch_size)
    assert [m.spans for m in found] == [m.spans for m in expected]
    assert [places_of(m.batch) for m in found] == [places_of(m.batch) for m in expected]
    assert [[str(b) for b in m.bad] for m in found] == [[str(b) for b in m.bad] for m in expected]


@given(streams(), st.integers(1, 6), st.integers(1, 9))
def test_a_chunk_in_parts_is_the_chunk(runs: list[Run], batch_size: int, samples_max: int) -> None:
    """Parts end behind whole records: none has more samples than it may, but those that are one record."""

    def parts(chunk: DecodedChunk) -> list[DecodedChunk]:
        if chunk.batch.size <= samples_max or (halves := chunk.halves()) is None:
            return [chunk]
        return [part for half in halves for part in parts(half)]

    class Parts:
        """A run that is decoded as one of its parts."""

        def __init__(self, part: DecodedChunk) -> None:
            self._part = part

        def decoded(self) -> DecodedChunk:
            return self._part

    found = [part for run in runs for part in parts(run.decoded())]
    for part in found:
        assert part.batch.size <= samples_max or part.offsets[0] == part.offsets[-1]
        assert all(part.first <= place < part.next for place in part.offsets)
        assert all(part.first <= (bad.offset or 0) < part.next for bad in part.bad)
    one, two = minibatches(runs, batch_size), minibatches([Parts(part) for part in found], batch_size)
    assert [m.spans for m in one] == [m.spans for m in two]
    assert [places_of(m.batch) for m in one] == [places_of(m.batch) for m in two]
    assert [[str(b) for b in m.bad] for m in one] == [[str(b) for b in m.bad] for m in two]


@given(streams(), st.integers(1, 6), st.data())
def test_a_restart_after_any_minibatch_goes_on_with_the_very_next_leaf(
    runs: list[Run], batch_size: int, data: st.DataObject
) -> None:
    undisturbed = minibatches(runs, batch_size)
    done = data.draw(st.integers(0, len(undisturbed)))
    tracker = PositionTracker({run.partition: run.first for run in reversed(runs)}, sequential=False)
    for minibatch in undisturbed[:done]:
        tracker.advance(minibatch.spans)
    learned = LeavesLearned(tracker.leaves)
    again = Minibatcher(batch_size, math.inf)
    found: list[Minibatch] = []
    for run in runs:
        # A source begins with the whole record that the position stands in.
        skip = min(max(tracker.positions[run.partition] - run.first, 0), len(run.records))
        rest = run.cut(skip)[1]
        if rest.records:
            again.add(learned.leave_out(rest.decoded()), 0.0)
        while (taken := again.take(0.0)) is not None:
            found.append(taken)
    while (taken := again.flush()) is not None:
        found.append(taken)
    for minibatch in found:
        tracker.advance(minibatch.spans)
    rest_of = undisturbed[done:]
    assert [p for m in found for p in places_of(m.batch)] == [p for m in rest_of for p in places_of(m.batch)]
    assert [str(b) for m in found for b in m.bad] == [str(b) for m in rest_of for b in m.bad]


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


def test_a_span_that_skips_or_repeats_a_leaf_is_refused() -> None:
    tracker = PositionTracker({"a": 5}, sequential=False, leaves={"a": 2})
    assert (tracker.positions, tracker.leaves) == ({"a": 5}, {"a": 2})
    for first_leaf in (0, 1, 3):
        with pytest.raises(
            SourceError, match=r"gave records 5( leaf [13])? to 5 leaf 9 where 5 leaf 2 comes next"
        ):
            tracker.advance([Span("a", 5, 5, 1, first_leaf, 9)])
    tracker.advance([Span("a", 5, 5, 3, 2, 5), Span("a", 5, 6, 1, 5, 0)])
    assert (tracker.positions, tracker.leaves) == ({"a": 6}, {})


def test_a_gap_takes_the_rest_of_a_record_with_it() -> None:
    tracker = PositionTracker({"a": 5}, sequential=False, leaves={"a": 2})
    learned = LeavesLearned(tracker.leaves)
    tracker.skip([Gap("a", 5, 9, "retention")])
    learned.skip([Gap("a", 5, 9, "retention")])
    assert (tracker.positions, tracker.leaves) == ({"a": 9}, {})
    assert learned.leave_out(Run("a", 9, "3").decoded()).batch.size == 3


def test_only_the_last_partition_keeps_a_position_where_they_follow_one_another() -> None:
    tracker = PositionTracker({"day1.jsonl": 7}, sequential=True)
    tracker.advance([Span("day1.jsonl", 7, 9, 2), Span("day2.jsonl", 0, 4, 4)])
    assert tracker.positions == {"day2.jsonl": 4}


def test_a_flood_of_refused_records_does_not_wait_for_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamtrain.samples.minibatch.REFUSED_MAX", 5)
    minibatcher = Minibatcher(batch_size=10, linger_ms=math.inf)
    minibatcher.add(Run("p", 0, "sbbb").decoded(), 0)
    assert not minibatcher.due and minibatcher.take(0) is None
    minibatcher.add(Run("p", 4, "bbs").decoded(), 0)
    assert minibatcher.due and minibatcher.ahead() is None
    cut = minibatcher.take(0)
    assert cut is not None
    assert (cut.batch.size, len(cut.bad), cut.spans) == (2, 5, (Span("p", 0, 7, 2),))
    minibatcher.add(Run("p", 7, "bbbb").decoded(), 0)
    assert minibatcher.take(0) is None
