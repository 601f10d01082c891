"""Laws of admission, expiry and decay: the net against its slow twin, through quarantine, cuts and restarts, bit for bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from streamtrain.layout import Layout
from streamtrain.log.record import FilterRows, TableRows
from streamtrain.samples.schema import Schema
from streamtrain.sparse.bloom_filter import BloomAdmission
from streamtrain.sparse.lifecycle_settings import AnyAdmission, CountingBloomAdmission, Decay, Expiry
from streamtrain.sparse.net import SparseNet
from streamtrain.sparse.settings import TableSettings
from tests.reference_lifecycle import Blooms, ReferenceTable, table_key
from tests.reference_sparse import GAMMA, mix
from tests.unit.sparse.cases import OPTIMIZERS, assert_same_bits, batch_of, colliding, ragged

DIM, SEED, SAMPLES, LENGTH = 2, 7, 6, 3
SCHEMA = Schema.model_validate(
    {
        "labels": ["y"],
        "slots": {
            "a": {"table": "t", "many": True},
            "past": {"kind": "sequence", "shares": "a", "length_max": LENGTH},
        },
    }
)
LAYOUT = Layout.of(SCHEMA, {"t": DIM})

ADMISSIONS: dict[str, dict[str, Any]] = {
    "none": {"kind": "none"},
    "count": {"kind": "count", "threshold": 3, "ids_max": 100},
    "crowded": {"kind": "count", "threshold": 4, "ids_max": 7, "halve_every_steps": 5},
    "bloom": {
        "kind": "counting_bloom",
        "threshold": 3,
        "expected_ids": 40,
        "error": 0.1,
        "halve_every_steps": 6,
    },
    "saturated": {
        "kind": "counting_bloom",
        "threshold": 255,
        "expected_ids": 1,
        "error": 0.01,
        "halve_every_steps": 40,
    },
    "probability": {"kind": "probability", "p": 0.3},
}
EXPIRIES: dict[str, Expiry | None] = {
    "never": None,
    "age": Expiry(after_steps=4, sweep_steps=3),
    "norm": Expiry(norm_min=0.1, norm_after_count=2, sweep_steps=2),
    "both": Expiry(after_steps=6, norm_min=0.05, norm_after_count=0, sweep_steps=1),
}
DECAYS: dict[str, Decay | None] = {
    "never": None,
    "decay": Decay(every_steps=3, weights=0.9, slots=0.8),
}
IDS = st.one_of(st.integers(0, 12), st.integers(0, 4).map(colliding), st.integers(0, 2**64 - 1))
MINIBATCHES = st.lists(
    st.tuples(
        st.lists(st.lists(IDS, max_size=5), min_size=SAMPLES, max_size=SAMPLES),
        st.sampled_from(["learn", "learn", "learn", "overflow", "discard", "cut", "restart"]),
    ),
    min_size=1,
    max_size=25,
)


def table(
    admission: str, expiry: str = "never", decay: str = "never", optimizer: str = "adagrad"
) -> TableSettings:
    rule: AnyAdmission = TypeAdapter(AnyAdmission).validate_python(ADMISSIONS[admission])
    fades = DECAYS[decay]
    if fades is not None and optimizer == "ftrl":
        fades = fades.model_copy(update={"weights": 1.0})
    return TableSettings(
        dim=DIM,
        rows_max=3000,
        admission=rule,
        expiry=EXPIRIES[expiry],
        decay=fades,
        optimizer=OPTIMIZERS[optimizer],
        unadmitted="zero" if admission == "bloom" else "initial",
    )


@pytest.fixture(autouse=True, scope="module")
def rows_move_as_soon_as_they_may() -> Iterator[None]:
    """In memory, that is: with so few rows they would never."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streamtrain.sparse.table.COMPACT_ROWS", 1)
        yield


class Disk:
    """What cuts have written, folded."""

    def __init__(self) -> None:
        self.rows: dict[int, tuple[Any, ...]] = {}
        self.filter: dict[int, bytes] = {}

    def write(self, rows: TableRows, filters: dict[str, FilterRows]) -> None:
        for i, id in enumerate(rows.ids.tolist()):
            self.rows[id] = (rows.weights[i], rows.slots[i], rows.counts[i], rows.last_steps[i])
        for id in rows.tombstones.tolist():
            self.rows.pop(id, None)
        for changed in filters.values():
            assert changed.ids.tolist() == sorted(set(changed.ids.tolist()))
            assert not set(changed.ids.tolist()) & set(changed.tombstones.tolist())
            self.filter |= {id: bytes(value) for id, value in zip(changed.ids.tolist(), changed.values)}
            for id in changed.tombstones.tolist():
                self.filter.pop(id, None)

    def restart(self, made: TableSettings) -> SparseNet:
        net = SparseNet(LAYOUT, {"t": made}, SEED)
        empty = net.export("t")
        order = sorted(
            self.rows, reverse=True
        )  # Another order than that of learning: no row number may matter.
        columns = [
            np.array([self.rows[id][c] for id in order], column.dtype).reshape(len(order), *column.shape[1:])
            for c, column in enumerate((empty.weights, empty.slots, empty.counts, empty.last_steps))
        ]
        net.load({"t": TableRows(np.array(order, np.uint64), *columns)})
        if self.filter:
            width = len(next(iter(self.filter.values())))
            values = np.frombuffer(b"".join(self.filter.values()), np.uint8).reshape(-1, width)
            net.load_filters({"t": FilterRows(np.array(list(self.filter), np.uint64), values)}, {})
        return net


@pytest.mark.parametrize("admission", ADMISSIONS)
@settings(max_examples=25, deadline=None)
@given(
    minibatches=MINIBATCHES,
    expiry=st.sampled_from(list(EXPIRIES)),
    decay=st.sampled_from(list(DECAYS)),
    optimizer=st.sampled_from(list(OPTIMIZERS)),
    first=st.sampled_from([0, 1, 2**32 - 5]),
    data=st.data(),
)
def test_a_net_does_what_its_slow_twin_does_through_quarantine_cuts_and_restarts(
    admission: str, minibatches: Any, expiry: str, decay: str, optimizer: str, first: int, data: st.DataObject
) -> None:
    made = table(admission, expiry, decay, optimizer)
    net, twin, disk = SparseNet(LAYOUT, {"t": made}, SEED), ReferenceTable(made, SEED), Disk()
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    for step, (lists, event) in enumerate(minibatches, first):
        # Each sample has another one's ids once more, as a sequence that nobody pools.
        pasts = [sample[-LENGTH:] for sample in lists[1:] + lists[:1]]
        ids = [id for sample in (*lists, *pasts) for id in sample]
        batch = batch_of({"a": ragged(lists), "past": ragged(pasts)})
        out = net.forward(batch, step, SAMPLES)
        gradient = rng.normal(size=(SAMPLES, DIM)).astype(np.float32)
        of_past = rng.normal(size=(SAMPLES, LENGTH, DIM)).astype(np.float32)
        if event == "discard":
            net.discard()
        elif event == "overflow":
            if net.backward(np.full_like(gradient, np.nan), {"past": np.full_like(of_past, np.nan)}, step):
                # No id of it had a row, so that nothing overflowed; its ids were counted.
                twin.step(Counter(ids), {id: [np.float32(np.nan)] * DIM for id in ids}, step)
        else:
            pooled, (vectors, mask) = out.pooled.copy(), (array.copy() for array in out.sequences["past"])
            assert net.backward(gradient, {"past": of_past}, step)
            sums: dict[int, list[np.float32]] = {}
            for i, sample in enumerate(lists):
                for id in sample:
                    sums[id] = [s + g for s, g in zip(sums.get(id, [np.float32(0)] * DIM), gradient[i])]
            for i, sample in enumerate(pasts):
                for place, id in enumerate(sample):
                    part = of_past[i, place]
                    sums[id] = [s + g for s, g in zip(sums.get(id, [np.float32(0)] * DIM), part)]
            seen = twin.step(Counter(ids), sums, step)
            for i, sample in enumerate(lists):
                total = np.zeros(DIM, np.float32)
                for id in sample:
                    total += np.array(seen[id], np.float32)
                assert_same_bits(pooled[i], total)
            for i, sample in enumerate(pasts):
                assert mask[i].tolist() == [1] * len(sample) + [0] * (LENGTH - len(sample))
                for place, id in enumerate(sample):
                    assert_same_bits(vectors[i, place], np.array(seen[id], np.float32))
        twin.end(step)
        if event in ("cut", "restart"):
            rows, filters = net.cut()["t"], net.cut_filters()[0]
            assert (rows.ids.tolist(), rows.tombstones.tolist()) == twin.cut()
            disk.write(rows, filters)
        if event == "restart":
            net = disk.restart(made)
    rows, filters = net.cut()["t"], net.cut_filters()[0]
    assert (rows.ids.tolist(), rows.tombstones.tolist()) == twin.cut()
    disk.write(rows, filters)
    assert disk.filter == ({} if twin.rule is None else twin.rule.state())
    assert disk.rows.keys() == twin.rows.keys()
    if made.admission.kind != "none":
        assert set(net.export("t").ids.tolist()) == twin.rows.keys()
    for id, row in twin.rows.items():
        weights, slots, count, last_step = disk.rows[id]
        assert_same_bits(weights, np.array(row.weights, np.float32))
        assert_same_bits(slots, np.array(row.slots(made.optimizer.kind), np.float32))
        assert (count, last_step) == (row.count, row.last_step)


def test_counters_saturate_and_stay_there_until_they_are_halved() -> None:
    rule = table("saturated").admission
    assert isinstance(rule, CountingBloomAdmission)
    made, key = BloomAdmission(rule, SEED, "t"), mix(table_key(SEED, "t") + 2 * GAMMA)
    twin, rng, full = Blooms(rule, key), np.random.default_rng(1), 0
    for step in range(120):
        ids = rng.choice(40, size=12, replace=False).astype(np.uint64)
        occurrences = rng.integers(1, 90, size=12).astype(np.uint32)
        admitted = set(ids[made.admit(ids, occurrences, step)].tolist())
        made.keep()
        assert admitted == twin.admit(dict(zip(ids.tolist(), occurrences.tolist(), strict=True)), step)
        full = max(full, round(made.gauges()["saturated"] * 64))
        made.end(step)
        twin.end(step)
        assert made.gauges()["saturated"] * 64 == sum(block.count(255) for block in twin.held.values())
    changed = made.cut()
    assert full > 3 and {id: bytes(v) for id, v in zip(changed.ids.tolist(), changed.values)} == twin.state()
