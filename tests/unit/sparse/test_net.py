"""SparseNet: steps, their order, and what they leave behind."""

from __future__ import annotations

import numpy as np
import pytest

from streamtrain.errors import ConfigError, TableFull
from streamtrain.log.record import TableRows
from streamtrain.sparse.net import SparseNet
from streamtrain.sparse.reader import SparseReader
from streamtrain.sparse.settings import Adagrad, Sgd
from streamtrain.sparse.table import EmbeddingTable
from tests.unit.sparse.cases import (
    LAYOUT,
    OPTIMIZERS,
    SLOTS,
    assert_same_bits,
    assert_same_rows,
    batch_of,
    by_id,
    ragged,
    random_batch,
    random_gradients,
    table_settings,
)

ADAGRAD = Adagrad()
# A gradient of 3e38 overflows with any of them.
OVERFLOWING = OPTIMIZERS | {"sgd": Sgd(kind="sgd", learning_rate=10.0)}


def net_of(rows_max: int = 100_000) -> SparseNet:
    return SparseNet(LAYOUT, table_settings(ADAGRAD, rows_max=rows_max), 5)


def train(net: SparseNet, steps: range, seed: int = 0) -> None:
    for step in steps:
        rng = np.random.default_rng([seed, step])
        net.forward(random_batch(rng, 20, ids=400), step, 24)
        net.backward(*random_gradients(rng, 24), step)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_other_growth_histories_cut_identical_records(kind: str) -> None:
    tables = table_settings(OPTIMIZERS[kind])
    plain, grown = SparseNet(LAYOUT, tables, 5), SparseNet(LAYOUT, tables, 5)
    strangers = np.arange(1_000_000, 1_020_000, dtype=np.uint64)
    for table in ("user", "item"):
        grown.tables[table].rows.find_or_insert(strangers)
        grown.remove(table, strangers[::2])
    grown.cut()
    for first in (0, 4, 8):
        train(plain, range(first, first + 4))
        train(grown, range(first, first + 4))
        grown.remove("item", strangers[1::4])
        cuts = plain.cut(), grown.cut()
        for table in ("user", "item"):
            left, right = cuts[0][table], cuts[1][table]
            assert len(left.ids) > 0
            for name in ("ids", "weights", "slots", "counts", "last_steps"):
                assert_same_bits(getattr(left, name), getattr(right, name))


def test_a_net_recovered_from_its_cuts_goes_on_bit_for_bit() -> None:
    net, recovered = net_of(), net_of()
    for first in (0, 3, 6):
        train(net, range(first, first + 3))
        recovered.load(net.cut())
    train(net, range(9, 12))
    train(recovered, range(9, 12))
    ours, theirs = net.cut(), recovered.cut()
    for table in ("user", "item"):
        assert_same_rows(ours[table], theirs[table])
        assert_same_rows(by_id(net.export(table)), by_id(recovered.export(table)))


def test_scoring_changes_nothing_and_equals_what_forward_would_give() -> None:
    net = net_of()
    train(net, range(3))
    rows = {table: net.rows(table) for table in net.tables}
    batch = random_batch(np.random.default_rng(9), 7, ids=2000)
    scored = net.score(batch, 16)
    assert {table: net.rows(table) for table in net.tables} == rows
    forward = net.forward(batch, 3, 16)
    assert_same_bits(scored.pooled, forward.pooled)
    for name, pair in scored.sequences.items():
        for left, right in zip(pair, forward.sequences[name], strict=True):
            assert_same_bits(left, right)


def test_serving_scores_with_the_trainers_bits_from_weights_alone() -> None:
    net = net_of()
    train(net, range(5))
    tables = {}
    for name, settings in table_settings(ADAGRAD).items():
        rows = net.export(name)
        tables[name] = EmbeddingTable(name, settings.dim, init=settings.init, seed=5, rows_max=1000)
        bare = np.empty((len(rows.ids), 0), np.float32)
        tables[name].load(TableRows(rows.ids, rows.weights, bare, rows.counts, rows.last_steps))
    batch = random_batch(np.random.default_rng(1), 9, ids=1000)
    assert_same_bits(SparseReader(LAYOUT, tables).score(batch, 16).pooled, net.score(batch, 16).pooled)


def test_padding_rows_are_zeros_and_their_gradients_are_not_learned() -> None:
    tight, padded = net_of(), net_of()
    rng = np.random.default_rng(3)
    train(padded, range(1))  # Leaves other values in the buffers.
    train(tight, range(1))
    batch = random_batch(rng, 5)
    out = padded.forward(batch, 1, 24)
    assert out.pooled.shape[0] == 24 and not out.pooled[5:].any()
    for vectors, mask in out.sequences.values():
        assert not vectors[5:].any() and not mask[5:].any()
    pooled, sequences = random_gradients(rng, 24)
    padded.backward(pooled, sequences, 1)
    tight.forward(batch, 1, 5)
    tight.backward(pooled[:5], {name: gradient[:5] for name, gradient in sequences.items()}, 1)
    assert_same_rows(padded.cut()["item"], tight.cut()["item"])


def test_gradients_where_the_mask_is_zero_are_not_learned() -> None:
    net, other = net_of(), net_of()
    batch = random_batch(np.random.default_rng(3), 5)
    pooled, sequences = random_gradients(np.random.default_rng(4), 5)
    _, mask = net.forward(batch, 1, 5).sequences["history"]
    masked = sequences | {"history": sequences["history"] * mask[:, :, None]}
    net.backward(pooled, sequences, 1)
    other.forward(batch, 1, 5)
    other.backward(pooled, masked, 1)
    np.testing.assert_array_equal(net.cut()["item"].weights, other.cut()["item"].weights)


def test_an_empty_minibatch_is_a_step_that_changes_nothing() -> None:
    net = net_of()
    empty = random_batch(np.random.default_rng(0), 0)
    for padded in (0, 8):
        out = net.forward(empty, 1, padded)
        assert out.pooled.shape == (padded, LAYOUT.pooled_width) and not out.pooled.any()
        net.backward(*random_gradients(np.random.default_rng(0), padded), 1)
    assert all(len(rows.ids) == 0 for rows in net.cut().values())


def test_slots_of_one_table_share_rows_and_counts() -> None:
    net = SparseNet(LAYOUT, table_settings(Sgd(kind="sgd", learning_rate=1.0)), 5)
    ids = {name: ragged([[]]) for name in SLOTS} | {"interests": ragged([[]], [[]])}
    initial = net.tables["item"].lookup(np.array([7], np.uint64))[0]
    batch = batch_of(ids | {"item": ragged([[7]]), "tags": ragged([[7, 7]]), "history": ragged([[8, 7]])})
    out = net.forward(batch, 1, 1)
    columns = {c.name: slice(c.start, c.start + c.dim) for c in LAYOUT.pooled}
    np.testing.assert_array_equal(out.pooled[0, columns["item"]], initial)
    np.testing.assert_array_equal(out.pooled[0, columns["tags"]], initial)
    np.testing.assert_array_equal(out.sequences["history"][0][0, 1], initial)
    assert out.sequences["history"][1][0].tolist() == [1, 1, 0]
    gradients = np.zeros((1, LAYOUT.pooled_width), np.float32)
    gradients[0, columns["item"]], gradients[0, columns["tags"]] = 1, 10
    sequences = {name: np.zeros_like(vectors) for name, (vectors, _) in out.sequences.items()}
    sequences["history"][0, 1] = 100
    net.backward(gradients, sequences, 1)
    cut = net.cut()["item"]
    assert cut.ids.tolist() == [7, 8] and cut.counts.tolist() == [4, 1]
    np.testing.assert_allclose(cut.weights[0], initial - 111, rtol=1e-6)


def test_discarding_leaves_no_trace_in_the_next_cut() -> None:
    net = net_of()
    net.forward(random_batch(np.random.default_rng(0), 4), 1, 4)
    net.discard()
    assert all(len(rows.ids) == len(rows.tombstones) == 0 for rows in net.cut().values())


def test_steps_are_forward_then_backward() -> None:
    net, rng = net_of(), np.random.default_rng(0)
    batch = random_batch(rng, 4)
    with pytest.raises(RuntimeError, match="which was not called"):
        net.backward(*random_gradients(rng, 4), 1)
    net.forward(batch, 1, 4)
    for forbidden in (
        lambda: net.forward(batch, 2, 4),
        net.cut,
        lambda: net.load({}),
        lambda: net.remove("item", IDS),
    ):
        with pytest.raises(RuntimeError, match="step 1 is between forward and backward"):
            forbidden()
    with pytest.raises(RuntimeError, match="which was step 1"):
        net.backward(*random_gradients(rng, 4), 2)
    pooled, sequences = random_gradients(rng, 4)
    for wrong in (
        (pooled[:3], sequences),
        (pooled, {}),
        (pooled, sequences | {"history": sequences["history"][:, :1]}),
    ):
        net.forward(batch, 1, 4)
        with pytest.raises(
            RuntimeError, match=r"backward of step 1 with gradients .* does not follow its forward"
        ):
            net.backward(*wrong, 1)
    assert all(len(rows.ids) == 0 for rows in net.cut().values())


def test_a_minibatch_larger_than_its_padding_is_refused() -> None:
    net = net_of()
    batch = random_batch(np.random.default_rng(0), 4)
    for refused in (lambda: net.forward(batch, 1, 3), lambda: net.score(batch, 3)):
        with pytest.raises(ValueError, match="4 samples does not fit into 3 rows"):
            refused()


IDS = np.array([1], np.uint64)


def test_no_step_is_begun_when_a_table_is_full() -> None:
    net, rng = net_of(rows_max=5), np.random.default_rng(0)
    with pytest.raises(TableFull, match="table '"):
        net.forward(random_batch(rng, 20), 1, 20)
    assert all(len(rows.ids) == 0 for rows in net.cut().values())


def test_rows_of_a_table_that_is_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"tables\.ghost"):
        net_of().load({"ghost": TableRows.empty(3, 3)})


def test_what_a_table_holds_can_be_asked() -> None:
    net = net_of()
    pulled = TableRows(
        IDS,
        np.ones((1, 3), np.float32),
        np.ones((1, 3), np.float32),
        np.ones(1, np.uint32),
        np.ones(1, np.uint32),
    )
    before = net.memory_bytes("user")
    assert net.insert_missing("user", pulled) == 1
    assert net.rows("user") == 1 and net.contains("user", np.array([0, 1], np.uint64)).tolist() == [
        False,
        True,
    ]
    assert net.memory_bytes("user") > before
    assert_same_bits(net.export("user").weights, pulled.weights)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38], ids=str)
def test_a_step_that_overflows_in_any_table_leaves_every_bit_and_the_next_cut_alone(
    kind: str, value: float
) -> None:
    net, other = (SparseNet(LAYOUT, table_settings(OVERFLOWING[kind]), 5) for _ in range(2))
    first, poison, last = (random_batch(np.random.default_rng(seed), 6) for seed in (1, 2, 3))
    for each in (net, other):
        each.forward(first, 1, 8)
        assert each.backward(*random_gradients(np.random.default_rng(4), 8), 1)
    net.forward(poison, 2, 8)
    pooled, sequences = random_gradients(np.random.default_rng(5), 8)
    # One column of the last table alone; the rows of the first were learned by then.
    column = next(c for c in LAYOUT.pooled if c.name == "item")
    pooled[:6, column.start + column.dim - 1] = value
    assert not net.backward(pooled, sequences, 2)
    for each in (net, other):
        each.forward(last, 3, 8)
        assert each.backward(*random_gradients(np.random.default_rng(6), 8), 3)
    cuts = net.cut(), other.cut()
    for name in cuts[0]:
        assert_same_rows(cuts[0][name], cuts[1][name])


def test_rows_that_only_a_refused_step_named_are_what_they_would_start_as() -> None:
    net = net_of()
    batch = batch_of(
        {name: ragged([[]]) for name in SLOTS} | {"interests": ragged([[]], [[]]), "item": ragged([[77]])}
    )
    net.forward(batch, 1, 1)
    pooled, sequences = random_gradients(np.random.default_rng(0), 1)
    assert not net.backward(np.full_like(pooled, np.nan), sequences, 1)
    assert net.contains("item", np.array([77], np.uint64)).all()
    held = net.export("item")
    fresh = net_of()
    fresh.forward(batch, 1, 1)
    fresh.discard()
    assert_same_rows(held, fresh.export("item"))
    assert held.counts.tolist() == [0] and held.last_steps.tolist() == [0]
    assert all(len(rows.ids) == 0 for rows in net.cut().values())
