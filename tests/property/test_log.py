"""Laws of the log's formats and folds, on random records."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from streamtrain.log import merge as merging
from streamtrain.log import ranges as by_ranges
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.fold import fold
from streamtrain.log.merge import gather, merge
from streamtrain.log.ranges import merge_by_ranges
from streamtrain.log.record import EpochRecord, SpanTable, TableRows
from streamtrain.log.verify import verify
from tests.reference_log import as_dict, assert_same_record, epoch_record, fold_dicts, table_rows

# Text that JSON and UTF-8 can hold: all of Unicode but lone surrogates.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/"), min_size=1, max_size=8)
naturals = st.integers(0, 2**63 - 1)
ranges = st.none() | st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
dense = st.dictionaries(
    texts,
    arrays.arrays(
        st.sampled_from([np.float32, np.float64, np.float16, np.int32, np.uint64, np.int8, np.bool_]),
        arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
    ),
    max_size=3,
)


@st.composite
def tables(draw: st.DrawFn) -> TableRows:
    ids = draw(arrays.arrays(np.uint64, st.integers(0, 4), unique=True))
    dim, slots = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    return TableRows(
        ids,
        draw(arrays.arrays(np.float32, (len(ids), dim))),
        draw(arrays.arrays(np.float32, (len(ids), slots))),
        draw(arrays.arrays(np.uint32, len(ids))),
        draw(arrays.arrays(np.uint32, len(ids))),
        draw(arrays.arrays(np.uint64, st.integers(0, 3), unique=True)),
    )


@st.composite
def genesis_records(draw: st.DrawFn) -> EpochRecord:
    partitions = tuple(draw(st.lists(texts, min_size=1, max_size=3, unique=True)))
    spans = draw(arrays.arrays(np.int64, st.tuples(st.integers(0, 4), st.just(5))))
    spans[:, 1] %= len(partitions)
    samples, step = draw(naturals), draw(st.integers(0, 2**62))
    return EpochRecord(
        epoch=0,
        previous="",
        step_first=step,
        step_next=step + draw(st.integers(0, 2**62)),
        samples=samples,
        samples_total=draw(st.integers(samples, 2**63 - 1)),
        positions=draw(st.dictionaries(texts, naturals, max_size=3)),
        tables=draw(st.dictionaries(names, tables(), max_size=2)),
        dense=draw(dense),
        metrics=draw(dense),
        spans=SpanTable(partitions, spans),
        bad_samples=draw(naturals),
        event_time_ms=draw(ranges),
        record_time_ms=draw(ranges),
        watermark_ms=draw(st.none() | naturals),
        committed_at_ms=draw(naturals),
        writer=draw(texts),
        notes=draw(st.dictionaries(texts, texts, max_size=2)),
    )


@given(genesis_records())
@settings(max_examples=80, deadline=None)
def test_any_record_is_read_back_bit_for_bit(record: EpochRecord) -> None:
    with tempfile.TemporaryDirectory() as directory:
        log = EpochLog.create(directory, "m", {})
        log.append(record)
        assert_same_record(EpochLog.open(directory).read(0), record)


ids = st.integers(0, 8) | st.sampled_from([2**63, 2**64 - 1])


@st.composite
def changes(draw: st.DrawFn, epoch: int, slots: int) -> TableRows:
    written = draw(st.lists(ids, max_size=5, unique=True))
    removed = draw(st.lists(ids.filter(lambda id_: id_ not in written), max_size=4, unique=True))
    return table_rows(written, removed, seed=epoch, slots=slots)


@st.composite
def histories(draw: st.DrawFn) -> list[dict[str, TableRows]]:
    return [
        {
            name: draw(changes(epoch, slots))
            for name, slots in (("user", 2), ("item", 0))
            if draw(st.booleans())
        }
        for epoch in range(draw(st.integers(1, 7)))
    ]


@given(histories(), st.data())
@settings(max_examples=40, deadline=None)
def test_a_base_is_the_dict_that_the_epochs_make_by_whatever_bases(
    history: list[dict[str, TableRows]], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        log = EpochLog.create(Path(directory) / "log", "m", {})
        previous = ""
        for epoch, rows in enumerate(history):
            previous = log.append(epoch_record(epoch, previous, rows))
        last = len(history) - 1
        fold(log.path)
        whole = log.base_path(last).read_bytes()
        base = log.read_base(last)
        for name in ("user", "item"):
            parts = [rows[name] for rows in history if name in rows]
            if parts:
                table = base.tables[name]
                assert as_dict(table) == fold_dicts(parts)
                assert np.all(table.ids[1:] > table.ids[:-1]) and len(table.tombstones) == 0
            else:
                assert name not in base.tables
        log.base_path(last).unlink()
        for upto in sorted(data.draw(st.sets(st.integers(0, last)))):
            fold(log.path, upto)
        fold(log.path)
        assert log.base_path(last).read_bytes() == whole
        report = verify(log.path)
        assert report.problems == () and report.bases_refolded == len(log.bases())


@given(
    st.lists(st.tuples(st.sets(ids, max_size=5), st.sets(ids, max_size=5)), max_size=6), st.integers(1, 20)
)
@settings(max_examples=150, deadline=None)
def test_merge_gives_the_same_however_often_it_unites(
    sources: list[tuple[set[int], set[int]]], pending_max: int
) -> None:
    pairs = [(np.array(sorted(w), np.uint64), np.array(sorted(r - w), np.uint64)) for w, r in sources]
    expected = merge(pairs)
    before, merging._PENDING_IDS_MAX = merging._PENDING_IDS_MAX, pending_max
    try:
        found = merge(pairs)
    finally:
        merging._PENDING_IDS_MAX = before
    np.testing.assert_array_equal(found, expected)
    if pairs:
        rows = list(gather([written for written, _ in pairs], found[1]))
        assert sum(map(len, rows)) == len(found[0])
        np.testing.assert_array_equal(np.concatenate([np.empty(0, np.uint64), *rows]), found[0])


@given(
    st.lists(
        st.tuples(st.lists(ids, max_size=9, unique=True), st.sets(ids, max_size=5)), min_size=1, max_size=6
    ),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(1, 4),
)
@settings(max_examples=150, deadline=None)
def test_merging_by_ranges_gives_the_same_wherever_they_are_cut(
    sources: list[tuple[list[int], set[int]]], range_ids: int, scan_ids: int, samples: int
) -> None:
    pairs = [(np.array(w, np.uint64), np.array(sorted(r - set(w)), np.uint64)) for w, r in sources]
    names = ("_RANGE_IDS", "_SCAN_IDS", "_SAMPLES_A_RANGE")
    before = [getattr(by_ranges, name) for name in names]
    for name, value in zip(names, (range_ids, scan_ids, samples), strict=True):
        setattr(by_ranges, name, value)
    try:
        found = merge_by_ranges(pairs)
    finally:
        for name, value in zip(names, before, strict=True):
            setattr(by_ranges, name, value)
    np.testing.assert_array_equal(found, merge(pairs))
    assert [array.dtype for array in found] == [np.uint64, np.int64]
