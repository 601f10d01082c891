"""Laws of the sparse half: maps against dicts, the net against its slow twin, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from streamtrain.log.record import TableRows
from streamtrain.samples.batch import Ragged, SampleBatch
from streamtrain.sparse.dirty import DirtyRows
from streamtrain.sparse.index import Index
from streamtrain.sparse.net import SparseNet
from streamtrain.sparse.unite import Uniter
from tests.reference_index import assert_all_have_their_turn, assert_in_order
from tests.reference_sparse import ReferenceNet
from tests.unit.sparse.cases import (
    LAYOUT,
    OPTIMIZERS,
    SLOTS,
    assert_same_bits,
    batch_of,
    colliding,
    ragged,
    table_settings,
)

IDS = st.one_of(
    st.integers(0, 2**64 - 1),
    st.integers(0, 30),
    st.integers(0, 30).map(lambda n: 2**64 - 1 - n),
    st.integers(0, 30).map(lambda n: n << 58),
    st.integers(0, 30).map(colliding),
)
ID_LISTS = st.lists(IDS, max_size=60)


class IndexMachine(RuleBasedStateMachine):
    """Index against a dict, with rows checked to be distinct and reused."""

    def __init__(self) -> None:
        super().__init__()
        self.index = Index("machine", 5000)
        self.oracle: dict[int, int] = {}

    @rule(ids=ID_LISTS)
    def insert(self, ids: list[int]) -> None:
        rows, fresh = np.empty(len(ids), np.int32), np.empty(len(ids), np.bool_)
        inserted = self.index.find_or_insert(np.array(ids, np.uint64), rows, fresh)
        assert inserted == fresh.sum()
        for id, row, new in zip(ids, rows.tolist(), fresh.tolist()):
            assert new == (id not in self.oracle)
            assert self.oracle.setdefault(id, row) == row

    @rule(start=st.integers(0, 2**64 - 1), count=st.integers(500, 1500))
    @precondition(lambda self: len(self.oracle) < 2000)
    def insert_many(self, start: int, count: int) -> None:
        self.insert([(start + 7 * n) % 2**64 for n in range(count)])

    @rule(ids=ID_LISTS, data=st.data())
    def erase(self, ids: list[int], data: st.DataObject) -> None:
        if self.oracle:
            ids = ids + data.draw(st.lists(st.sampled_from(sorted(self.oracle)), max_size=60))
        rows = self.index.erase(np.array(ids, np.uint64))
        for id, row in zip(ids, rows.tolist()):
            assert self.oracle.pop(id, -1) == row

    @rule(share=st.floats(0.1, 1.0), seed=st.integers(0, 9))
    def erase_many(self, share: float, seed: int) -> None:
        """So that it shrinks."""
        ids = np.array(list(self.oracle), np.uint64)
        gone = ids[np.random.default_rng(seed).random(len(ids)) < share]
        rows = self.index.erase(gone)
        assert rows.tolist() == [self.oracle.pop(int(id)) for id in gone]

    @rule(share=st.floats(0.0, 1.0))
    def compact(self, share: float) -> None:
        high = int(len(self.index) + share * (self.index.rows_high - len(self.index)))
        sources, targets = self.index.compact(high)
        assert self.index.rows_high == high
        ids = {row: id for id, row in self.oracle.items()}
        for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
            assert target not in ids and target < source
            ids[target] = ids.pop(source)
        self.oracle = {id: row for row, id in ids.items()}

    @rule(every=st.integers(1, 40))
    def every_id_has_its_turn(self, every: int) -> None:
        assert_all_have_their_turn(self.index, set(self.oracle), every)

    @rule(ids=ID_LISTS)
    def find(self, ids: list[int]) -> None:
        assert self.index.find(np.array(ids, np.uint64)).tolist() == [self.oracle.get(id, -1) for id in ids]

    @invariant()
    def holds_what_the_dict_holds(self) -> None:
        assert len(self.index) == len(self.oracle)
        rows = self.index.live_rows()
        assert rows.tolist() == sorted(self.oracle.values())
        assert {int(id): row for id, row in zip(self.index.row_ids[rows], rows.tolist())} == self.oracle
        everything = np.array(list(self.oracle), np.uint64)
        assert self.index.find(everything).tolist() == list(self.oracle.values())
        assert_in_order(self.index)


IndexMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestIndex = IndexMachine.TestCase


class DirtyMachine(RuleBasedStateMachine):
    """DirtyRows against a dict, with few rows so that the list fills up with holes."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = DirtyRows("machine", 6)
        self.oracle: dict[int, None] = {}

    @rule(rows=st.lists(st.integers(0, 5), max_size=8))
    def mark(self, rows: list[int]) -> None:
        self.rows.mark(np.array(rows, np.int32))
        self.oracle |= dict.fromkeys(row for row in rows if row not in self.oracle)

    @rule(rows=st.lists(st.integers(-1, 5), max_size=8))
    def unmark(self, rows: list[int]) -> None:
        self.rows.unmark(np.array(rows, np.int32))
        for row in rows:
            self.oracle.pop(row, None)

    @rule(moves=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=3))
    def renumber(self, moves: list[tuple[int, int]]) -> None:
        done = []
        for source, goal in moves:
            if goal not in self.oracle and source != goal:
                done.append((source, goal))
                self.oracle = {goal if row == source else row: None for row in self.oracle}
        sources, targets = np.array(done, np.int32).reshape(-1, 2).T.copy()
        self.rows.renumber(sources, targets)

    @rule()
    def take(self) -> None:
        assert self.rows.take().tolist() == list(self.oracle)
        self.oracle = {}


DirtyMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestDirtyRows = DirtyMachine.TestCase


@given(st.lists(st.lists(st.one_of(IDS, st.integers(0, 5)), max_size=200), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_united_ids_are_distinct_and_stand_in_the_order_of_first_occurrence(
    minibatches: list[list[int]],
) -> None:
    uniter = Uniter()
    for values in minibatches:
        united = uniter.unite(np.array(values, np.uint64))
        assert united.ids.tolist() == list(dict.fromkeys(values))
        assert united.ids[united.inverse].tolist() == values
        assert united.occurrences.tolist() == [values.count(id) for id in dict.fromkeys(values)]


@st.composite
def minibatches(draw: st.DrawFn) -> SampleBatch:
    size = draw(st.integers(0, 3))
    ids = st.lists(st.one_of(st.integers(0, 6), IDS), max_size=4)
    floats = st.floats(-2, 2, width=32)
    slots: dict[str, Ragged] = {}
    for name in SLOTS:
        lists = [draw(ids) for _ in range(size)]
        weights = [[draw(floats) for _ in ids] for ids in lists] if name == "interests" else None
        slots[name] = ragged(lists, weights)
    return batch_of(slots)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_the_net_has_the_bits_of_its_slow_twin(kind: str, data: st.DataObject) -> None:
    tables = table_settings(OPTIMIZERS[kind])
    net, twin = SparseNet(LAYOUT, tables, 7), ReferenceNet(LAYOUT, tables, 7)
    for step in data.draw(st.lists(st.integers(0, 2**33), min_size=1, max_size=4)):
        batch = data.draw(minibatches())
        padded = batch.size + data.draw(st.integers(0, 2))
        rng = np.random.default_rng(step)
        assert_same_activations(net, twin, batch, padded, step)
        gradients = rng.normal(size=(padded, LAYOUT.pooled_width)).astype(np.float32)
        sequences = {
            s.name: rng.normal(size=(padded, s.length_max, s.dim)).astype(np.float32)
            for s in LAYOUT.sequences
        }
        net.backward(gradients, sequences, step)
        twin.backward(batch, gradients, sequences, step)
        gone = data.draw(st.lists(st.integers(0, 6), max_size=3))
        net.remove("item", np.array(gone, np.uint64))
        twin.remove("item", gone)
        if data.draw(st.booleans()):
            assert_same_cut(net, twin, kind)
    assert_same_cut(net, twin, kind)


def assert_same_activations(
    net: SparseNet, twin: ReferenceNet, batch: SampleBatch, padded: int, step: int
) -> None:
    pooled, sequences = twin.score(batch, padded)
    scored = net.score(batch, padded)
    forward = net.forward(batch, step, padded)
    twin.insert(batch)
    for activations in (scored, forward):
        assert_same_bits(activations.pooled, pooled)
        assert activations.sequences.keys() == sequences.keys()
        for name, (vectors, mask) in sequences.items():
            assert_same_bits(activations.sequences[name][0], vectors)
            assert_same_bits(activations.sequences[name][1], mask)


def assert_same_cut(net: SparseNet, twin: ReferenceNet, kind: str) -> None:
    for table, found in net.cut().items():
        ids, tombstones = twin.cut(table)
        assert found.ids.tolist() == ids
        assert found.tombstones.tolist() == tombstones
        rows = [twin.tables[table][id] for id in ids]
        expected = TableRows.empty(found.weights.shape[1], found.slots.shape[1])
        if rows:
            expected = TableRows(
                found.ids,
                np.array([row.weights for row in rows], np.float32),
                np.array([row.slots(kind) for row in rows], np.float32).reshape(len(rows), -1),
                np.array([row.count for row in rows], np.uint32),
                np.array([row.last_step for row in rows], np.uint32),
            )
        for name in ("weights", "slots", "counts", "last_steps"):
            assert_same_bits(getattr(found, name), getattr(expected, name))
