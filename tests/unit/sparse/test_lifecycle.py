"""Admission, expiry and decay one by one: what each promises, and what a user sees where it is used wrongly."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from streamtrain.errors import ConfigError
from streamtrain.layout import Layout
from streamtrain.log.record import FilterRows
from streamtrain.samples.schema import Schema
from streamtrain.sparse.admission import make_admission
from streamtrain.sparse.bloom import bloom_size, false_positive_rate
from streamtrain.sparse.bloom_filter import BloomAdmission
from streamtrain.sparse.decay import RowDecay
from streamtrain.sparse.dynamic import DynamicTable
from streamtrain.sparse.index import Index
from streamtrain.sparse.lifecycle_settings import AnyAdmission, CountingBloomAdmission, Decay
from streamtrain.sparse.net import SparseNet
from streamtrain.sparse.settings import AnyInit, Ftrl, TableSettings
from streamtrain.sparse.table import EmbeddingTable
from streamtrain.sparse.turns import rows_in_turn
from tests.unit.sparse.cases import OPTIMIZERS, assert_same_bits, batch_of, colliding, ragged

DOCS = Path(__file__).resolve().parents[3] / "docs"
LAYOUT = Layout.of(
    Schema.model_validate({"labels": ["y"], "slots": {"a": {"table": "t", "many": True}}}), {"t": 2}
)


def rule(**options: Any) -> Any:
    return make_admission(TypeAdapter(AnyAdmission).validate_python(options), 1, "t")


def ids_of(*ids: int) -> np.ndarray:
    return np.array(ids, np.uint64)


def admit(made: Any, *ids: int, times: int = 1, step: int = 0) -> list[bool]:
    admitted = made.admit(ids_of(*ids), np.full(len(ids), times, np.uint32), step)
    made.keep()
    return admitted.tolist()


def random_ids(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, count, np.uint64)


@pytest.mark.parametrize("error", [0.1, 0.01])
def test_a_filter_has_the_error_that_it_was_sized_for(error: float) -> None:
    held, asked, together = 40_000, 200_000, 1000
    settings = CountingBloomAdmission(kind="counting_bloom", threshold=255, expected_ids=held, error=error)
    made = BloomAdmission(settings, 1, "t")
    made.admit(random_ids(held, 0), np.ones(held, np.uint32), 0)
    made.keep()
    wrongly = 0
    for ids in random_ids(asked, 1).reshape(-1, together):
        # An id that never came is admitted by 254 occurrences where it seems to have come before, and not else.
        wrongly += np.count_nonzero(made.admit(ids, np.full(together, 254, np.uint32), 1))
        made.undo()
    # Those that are asked together raise each other's chance, by what they add to the filter.
    slack = 4 * np.sqrt(error / asked)
    assert 0.95 * error - slack < wrongly / asked < error * (1 + 4 * together / held) + slack


def test_the_size_of_a_filter_is_the_least_that_keeps_its_error() -> None:
    for error in (0.3, 0.02, 1e-4):
        size = bloom_size(1_000_000, error)
        assert false_positive_rate(1_000_000 / size.blocks, size.hashes) <= error
        for hashes in range(1, 11):
            assert false_positive_rate(1_000_000 / (size.blocks * 0.999), hashes) > error


def test_an_id_that_was_admitted_starts_again_at_nothing() -> None:
    for made in (
        rule(kind="counting_bloom", threshold=3, expected_ids=1000),
        rule(kind="count", threshold=3),
    ):
        assert [admit(made, 7) for _ in range(3)] == [[False], [False], [True]]
        assert [admit(made, 7) for _ in range(3)] == [[False], [False], [True]]


def test_counters_that_are_full_stay_so_until_they_are_halved() -> None:
    made = rule(kind="counting_bloom", threshold=255, expected_ids=1000, halve_every_steps=1)
    assert admit(made, 7, times=254) == [False]
    assert admit(made, 7, times=1) == [True] and admit(made, 7) == [False]
    # 300 occurrences of a neighbour in all counters of the id, as if by collision: they stop at 255 and stay.
    changed = made.cut()
    made.load(FilterRows(changed.ids, np.full_like(changed.values, 255)))
    assert made.gauges()["saturated"] > 0
    assert [admit(made, 7) for _ in range(3)] == [[True]] * 3
    made.end(0)
    assert made.gauges()["saturated"] == 0 and admit(made, 7) == [False]


def test_a_filter_commits_blocks_that_changed_and_nothing_else() -> None:
    made = rule(kind="counting_bloom", threshold=2, expected_ids=1_000_000)
    made.admit(random_ids(100, 0), np.ones(100, np.uint32), 0)
    made.keep()
    first = made.cut()
    assert 90 <= len(first.ids) <= 100 and first.values.shape[1] == 64 and not len(first.tombstones)
    assert not len(made.cut().ids)
    # Coming again, they are admitted and leave; their blocks are empty.
    made.admit(random_ids(100, 0), np.ones(100, np.uint32), 1)
    made.keep()
    assert made.cut().tombstones.tolist() == first.ids.tolist()


def test_a_full_set_of_candidates_forgets_those_that_came_least() -> None:
    made = rule(kind="count", threshold=100, ids_max=4)
    admit(made, 1, 2, times=6)
    admit(made, 3, 4)
    admit(made, 5)
    found = made.cut()
    counts = dict(zip(found.ids.tolist(), found.values[:, 0].tolist(), strict=True))
    assert {1, 2, 5} <= counts.keys() != {1, 2, 3, 4, 5}
    assert counts[5] == 1 and {counts[1], counts[2]} <= {3, 6}


def test_a_full_set_of_candidates_forgets_a_few_of_them_at_once() -> None:
    made, ids = rule(kind="count", threshold=2, ids_max=20_000), random_ids(40_000, 0)
    made.admit(ids[:20_000], np.ones(20_000, np.uint32), 0)
    made.keep()
    made.cut()
    for step in range(1, 101):
        new = ids[20_000 + 100 * step : 20_100 + 100 * step]
        made.admit(new, np.ones(len(new), np.uint32), step)
        made.keep()
        changed = made.cut()
        assert np.array_equal(changed.ids, np.sort(new))
        assert len(changed.tombstones) <= 1500
    # All of them had their turn about as often.
    left = made.admit(ids[:20_000], np.ones(20_000, np.uint32), 101).mean()
    assert 0.3 < left < 0.75


def test_more_new_ids_than_there_is_room_for_are_counted_as_far_as_there_is() -> None:
    made = rule(kind="count", threshold=2, ids_max=3)
    assert admit(made, 1, 2, 3, 4, 5) == [False] * 5
    assert admit(made, 1, 2, 3, 4, 5) == [True, True, True, False, False]


def test_chance_admits_its_share_and_decides_the_same_again() -> None:
    made, ids = rule(kind="probability", p=0.2), random_ids(50_000, 0)
    for times in (1, 3):
        occurrences = np.full(len(ids), times, np.uint32)
        admitted = made.admit(ids, occurrences, 5)
        assert abs(admitted.mean() - (1 - 0.8**times)) < 0.01
        assert np.array_equal(admitted, rule(kind="probability", p=0.2).admit(ids, occurrences, 5))
        assert (admitted != made.admit(ids, occurrences, 6)).any()


def test_every_id_has_its_turn_once_whatever_the_index_has_been_through() -> None:
    ids = np.concatenate([random_ids(3000, 0), ids_of(*map(colliding, range(20)))])
    grown, plain = Index("grown", 100_000), Index("plain", 100_000)
    rows, fresh = np.empty(20_000, np.int32), np.empty(20_000, np.bool_)
    grown.find_or_insert(random_ids(20_000, 1), rows, fresh)
    grown.erase(random_ids(20_000, 1))
    for index, order in ((grown, ids[::-1]), (plain, ids)):
        index.find_or_insert(order, np.empty(len(ids), np.int32), np.empty(len(ids), np.bool_))
    turns = [
        [index.row_ids[rows_in_turn(index, s, 7)].tolist() for s in range(7)] for index in (grown, plain)
    ]
    assert turns[0] == turns[1]
    assert sorted(id for turn in turns[0] for id in turn) == sorted(ids.tolist())


def test_no_part_of_an_index_is_crowded_by_what_sweeps_leave_behind() -> None:
    """Where each sweep drops what it meets, ids of the next turn are twice as many as the mean, and those of the last none."""
    index, random, every, longest = Index("swept", 200_000), np.random.default_rng(3), 50, 0
    for step in range(4 * every):
        ids = random.integers(0, 2**64, 3000, np.uint64)
        index.find_or_insert(ids, np.empty(3000, np.int32), np.empty(3000, np.bool_))
        index.erase(index.row_ids[rows_in_turn(index, step, every)])
        bits, split = index.layout
        places = np.flatnonzero(index.entries)
        tags = index.entries[places] >> np.uint64(32)
        coarse = tags >> np.uint64(32 - bits)
        homes = np.where(coarse < split, coarse, tags >> np.uint64(31 - bits))
        longest = max(longest, int((places - homes.astype(np.int64)).max()))
    assert len(index) > 0.5 * 2 ** index.layout[0]
    assert longest < 200


@given(
    steps=st.lists(st.integers(1, 40), min_size=1, max_size=20),
    every=st.integers(1, 9),
    factor=st.floats(0.5, 0.999),
    first=st.sampled_from([0, 2**32 - 30]),
)
def test_decay_is_what_multiplying_at_every_boundary_gives(
    steps: list[int], every: int, factor: float, first: int
) -> None:
    decay, last = RowDecay(Decay(every_steps=every, weights=factor)), first
    row = np.ones((1, 1), np.float32)
    slow, step = 1.0, first
    for gap in steps:
        for step in range(last + 1, last + gap + 1):
            slow *= factor if step % every == 0 else 1.0
        bits = np.array([[0, last & 0xFFFFFFFF]], np.uint32)
        decay.fade(row, bits, np.zeros(1, np.int32), step)
        last = step
    assert float(row[0, 0]) == pytest.approx(slow, rel=1e-5, abs=1e-37)


def net_of(**options: Any) -> SparseNet:
    return SparseNet(LAYOUT, {"t": TableSettings.model_validate({"dim": 2} | options)}, 5)


def train(net: SparseNet, step: int, *ids: int, gradient: float = 1.0) -> np.ndarray:
    out = net.forward(batch_of({"a": ragged([[id] for id in ids])}), step, max(len(ids), 1))
    seen = out.pooled.copy()
    assert net.backward(np.full_like(seen, gradient), {}, step)
    return seen


def test_the_memory_of_expired_rows_is_used_again() -> None:
    net = net_of(expiry={"after_steps": 10, "sweep_steps": 5})
    for step in range(200):
        train(net, step, *range(100 * step, 100 * step + 100))
    table = net.tables["t"]
    assert isinstance(table, DynamicTable)
    assert len(table) < 1700 and table.rows._index.rows_high < 1800
    assert table.take_events()["expired_age"] == 20_000 - len(table)


def test_an_expired_id_starts_anew_and_is_a_tombstone_until_it_comes_again() -> None:
    net = net_of(expiry={"after_steps": 3, "sweep_steps": 1}, admission={"kind": "count", "threshold": 2})
    train(net, 0, 7, 7)
    assert net.cut()["t"].ids.tolist() == [7]
    for step in range(1, 6):
        train(net, step, 8)
    assert net.cut()["t"].tombstones.tolist() == [7] and not net.contains("t", ids_of(7))[0]
    train(net, 6, 7)
    assert not net.contains("t", ids_of(7))[0]
    train(net, 7, 7)
    found = net.cut()["t"]
    assert (found.ids.tolist(), found.counts.tolist(), found.tombstones.tolist()) == ([7], [1], [])


@pytest.mark.parametrize("unadmitted", ["initial", "zero"])
def test_ids_without_a_row_share_one_vector_in_trainer_and_follower(unadmitted: str) -> None:
    net = net_of(admission={"kind": "count", "threshold": 2}, unadmitted=unadmitted)
    seen = train(net, 0, 1, 2, 3)
    assert len({row.tobytes() for row in seen}) == 1
    assert (seen[0] == 0).all() == (unadmitted == "zero")
    served = EmbeddingTable(
        "t",
        2,
        init=TableSettings(dim=2).init,
        seed=5,
        rows_max=10,
        unadmitted=unadmitted,  # type: ignore[arg-type]
    )
    assert_same_bits(served.lookup(ids_of(1, 99)), seen[:2].copy())
    assert_same_bits(net.tables["t"].lookup(ids_of(4)), seen[:1].copy())
    assert not len(net.cut()["t"].ids)


def test_the_shared_vector_is_that_of_the_document() -> None:
    text = (DOCS / "initial-rows.md").read_text(encoding="utf-8")
    vectors = re.findall(r"^\| (\w+), (\w+) ([\d.]+) \| shared \| (.*) \|$", text, re.MULTILINE)
    assert len(vectors) == 3
    for kind, option, number, bits in vectors:
        init = TypeAdapter(AnyInit).validate_python({"kind": kind, option: float(number)})
        table = EmbeddingTable("item", 5, init=init, seed=42, rows_max=4, unadmitted="initial")
        weights = table.lookup(ids_of(0))[0]
        assert [f"`0x{word:08x}`" for word in weights.view(np.uint32).tolist()] == bits.split()


class Loyal:
    """The rule of docs/features.md, for the tests that use it by its path."""

    def __init__(self, table: str, seed: int, *, needed: int) -> None:
        self.needed, self.seen = needed, 0

    def admit(self, ids: np.ndarray, occurrences: np.ndarray, step: int) -> np.ndarray:
        self.seen += len(ids)
        return occurrences >= self.needed

    def state(self) -> Mapping[str, np.ndarray]:
        return {"seen": np.array(self.seen)}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        self.seen = int(state["seen"])


OWN = f"{__name__}:Loyal"


def test_a_users_rule_decides_and_its_state_is_undone_committed_and_restored() -> None:
    net = net_of(admission={"kind": OWN, "needed": 2})
    train(net, 0, 1, 1, 2)
    assert net.contains("t", ids_of(1, 2)).tolist() == [True, False]
    assert net.cut_filters()[1]["t/seen"] == 2
    net.forward(batch_of({"a": ragged([[1, 5, 5, 6]])}), 1, 1)
    net.discard()
    filters, state = net.cut_filters()
    assert (filters, state["t/seen"].item(), net.contains("t", ids_of(5))[0]) == ({}, 2, False)
    other = net_of(admission={"kind": OWN, "needed": 2})
    other.load_filters({}, {"t/seen": np.array(40)})
    assert other.cut_filters()[1]["t/seen"] == 40


def test_the_example_of_the_document_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (DOCS / "features.md").read_text(encoding="utf-8")
    (tmp_path / "my_rules.py").write_text("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    net = net_of(
        admission={"kind": "my_rules:NewIdsAStep", "at_most": 2},
        expiry={"rule": "my_rules:weak_and_rare", "sweep_steps": 1},
    )
    train(net, 0, 1, 2, 3, gradient=0.0)
    assert net.contains("t", ids_of(1, 2, 3)).tolist() == [True, True, False]
    train(net, 1, 1, 4)
    assert net.contains("t", ids_of(1, 2, 4)).tolist() == [True, False, True]
    assert net.tables["t"].take_events()["expired_rule"] == 1
    assert net.cut_filters()[1]["t/admitted"].tolist() == [3]


def weights_only(weights: np.ndarray, *_: Any) -> np.ndarray:
    return weights  # No mask.


def divides(*_: Any) -> np.ndarray:
    raise ZeroDivisionError("in a rule")


class Faulty:
    """A rule with a fault in the method that is named."""

    def __init__(self, table: str, seed: int, *, fault: str) -> None:
        self._fault = fault
        self._find("making")

    def _find(self, method: str) -> None:
        if self._fault == method:
            raise KeyError(method)

    def admit(self, ids: np.ndarray, occurrences: np.ndarray, step: int) -> np.ndarray:
        self._find("admit")
        return np.ones(len(ids) + (self._fault == "length"), np.bool_)

    def state(self) -> Mapping[str, np.ndarray]:
        self._find("state")
        return {"text": np.array(["a"])} if self._fault == "text" else {}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        self._find("load")


FAULTY = f"{__name__}:Faulty"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"admission": {"kind": "count", "threshold": 1}}, "threshold"),
        ({"admission": {"kind": "counting_bloom", "threshold": 256, "expected_ids": 5}}, "threshold"),
        ({"admission": {"kind": "often"}}, "expected tags: 'none', .*'module:Class'"),
        ({"admission": {"kind": "my_rules:Often!"}}, "write it as module:name"),
        ({"expiry": {"sweep_steps": 5}}, "name at least one of after_steps, norm_min and rule"),
        ({"expiry": {"rule": "nowhere"}}, "write it as module:name"),
        ({"decay": {"every_steps": 5}}, "set weights or slots below 1"),
        ({"decay": {"every_steps": 5, "weights": 0.5}, "optimizer": Ftrl(kind="ftrl")}, "let decay.slots"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_words(options: Any, text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        TableSettings.model_validate({"dim": 2} | options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"admission": {"kind": "no.such:Rule"}}, r"tables\.t\.admission: cannot load 'no.such:Rule'"),
        ({"expiry": {"rule": "no.such:rule"}}, r"tables\.t\.expiry\.rule: cannot load 'no.such:rule'"),
        ({"admission": {"kind": OWN, "wanted": 2}}, "tables.t.admission: .*Loyal cannot be made .*'wanted'"),
        ({"expiry": {"rule": f"{__name__}:OWN"}}, "tables.t.expiry.rule: .* is no function"),
        ({"expiry": {"rule": f"{__name__}:weights_only", "sweep_steps": 1}}, "has to return a bool array"),
        (
            {"expiry": {"rule": f"{__name__}:divides", "sweep_steps": 1}},
            r"tables\.t\.expiry\.rule: .*:divides failed: ZeroDivisionError: in a rule .*correct it",
        ),
        ({"admission": {"kind": f"{__name__}:divides"}}, "divides: making it failed: ZeroDivisionError"),
        ({"admission": {"kind": "builtins:complex"}}, "complex cannot be made with the table's name"),
        ({"admission": {"kind": "builtins:print"}}, "tables.t.admission: builtins:print .*no method 'admit'"),
        ({"admission": {"kind": FAULTY, "fault": "making"}}, "Faulty: making it failed: KeyError: 'making'"),
        ({"admission": {"kind": FAULTY, "fault": "admit"}}, r"Faulty\.admit failed: KeyError: 'admit'"),
        ({"admission": {"kind": FAULTY, "fault": "state"}}, r"Faulty\.state failed: KeyError: 'state'"),
        ({"admission": {"kind": FAULTY, "fault": "length"}}, "a bool array with one item for each id"),
        ({"admission": {"kind": FAULTY, "fault": "text"}}, "'text' is an array of <U1; a record holds"),
    ],
)
def test_a_users_rule_that_does_not_fit_is_told(options: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        train(net_of(**options), 0, 1)


def test_a_users_rule_that_cannot_take_its_state_back_is_told() -> None:
    net = net_of(admission={"kind": FAULTY, "fault": "load"})
    with pytest.raises(ConfigError, match=r"tables\.t\.admission: .*Faulty\.load failed: KeyError"):
        net.load_filters({}, {"t/seen": np.zeros(1)})


def test_filters_of_another_rule_are_refused() -> None:
    counted = net_of(admission={"kind": "count", "threshold": 3})
    train(counted, 0, 1)
    filters, state = counted.cut_filters()
    for admission, text in (
        ({"kind": "none"}, "admit every id"),
        ({"kind": "probability", "p": 0.5}, "rule has none"),
        ({"kind": "counting_bloom", "threshold": 3, "expected_ids": 10}, "of another rule or size"),
    ):
        with pytest.raises(ConfigError, match=text):
            net_of(admission=admission).load_filters(filters, state)


def test_statistics_decay_but_not_the_number_of_updates() -> None:
    for kind, optimizer in OPTIMIZERS.items():
        slots = {"sgd": 0, "adagrad": 2, "rowwise_adagrad": 1, "adam": 4, "ftrl": 4}[kind]
        net = net_of(optimizer=optimizer, decay={"every_steps": 1, "slots": 0.5}, expiry={"after_steps": 50})
        train(net, 0, 1)
        before = net.export("t")
        train(net, 1, 2)
        table = net.tables["t"]
        assert isinstance(table, DynamicTable)
        table.rows.fade(faded := net.export("t"), 1)
        assert_same_bits(faded.slots[0, :slots], before.slots[0, :slots] * np.float32(0.5))
        assert_same_bits(faded.slots[0, slots:], before.slots[0, slots:])
