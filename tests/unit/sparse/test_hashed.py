"""Hashed tables: what ids share, what they learn, and that they are ordinary rows everywhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from streamtrain.errors import ConfigError
from streamtrain.layout import Layout
from streamtrain.samples.schema import Schema
from streamtrain.sparse.combining import COMBINERS
from streamtrain.sparse.direct import DirectIndex
from streamtrain.sparse.hashed import HashedTable
from streamtrain.sparse.hashed_ids import RowIds
from streamtrain.sparse.net import SparseNet
from streamtrain.sparse.settings import Adagrad, Normal, Sgd
from streamtrain.sparse.tables import AnyTable, Hashing, HashTable, MultiHashTable
from streamtrain.sparse.unite import Uniter
from streamtrain.sparse.wanted import HashedRows
from tests.reference_hashed import ReferenceHashed, row_ids
from tests.unit.sparse.cases import OPTIMIZERS, assert_same_bits, assert_same_rows, batch_of, ragged

ROOT = Path(__file__).resolve().parents[3]
SEED = 9
INIT = Normal(std=0.3)

KINDS: dict[str, AnyTable] = {
    "hash": HashTable(kind="hash", dim=4, rows=11, init=INIT),
    "quotient_remainder, add": MultiHashTable(kind="multi_hash", dim=4, rows=[5, 3], init=INIT),
    "quotient_remainder, concat": MultiHashTable(
        kind="multi_hash", dim=4, rows=[5, 3], combine="concat", init=INIT
    ),
    "quotient_remainder, multiply": MultiHashTable(
        kind="multi_hash", dim=4, rows=[5, 3], combine="multiply", init=INIT
    ),
    "three hashes, add": MultiHashTable(kind="multi_hash", dim=4, rows=7, hashes=3, init=INIT),
    "four hashes, concat": MultiHashTable(
        kind="multi_hash", dim=4, rows=[7, 2, 3, 1], hashes=4, combine="concat", init=INIT
    ),
    "three hashes, multiply": MultiHashTable(
        kind="multi_hash", dim=4, rows=7, hashes=3, combine="multiply", init=INIT
    ),
}
TABLE: TypeAdapter[Any] = TypeAdapter(AnyTable)


def table_of(kind: AnyTable) -> HashedTable:
    assert kind.hashing is not None
    return HashedTable("t", kind.dim, kind.hashing, init=kind.init, seed=SEED, optimizer=kind.optimizer)


def step_of(table: HashedTable, ids: list[int], gradients: np.ndarray, step: int, keep: bool = True) -> None:
    """One step with a gradient for each distinct id."""
    united = Uniter().unite(np.array(ids, np.uint64))
    vectors = np.empty((len(united.ids), table.dim), np.float32)
    table.begin(united, table.prepare(united), step, vectors)
    assert table.learn(gradients, step) == keep
    table.keep() if keep else table.undo()


def random_step(table: HashedTable, rng: np.random.Generator, step: int) -> None:
    ids = rng.integers(0, 40, 30).tolist()
    step_of(table, ids, rng.normal(size=(len(set(ids)), table.dim)).astype(np.float32), step)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", ["adagrad", "adam"])
@given(
    minibatches=st.lists(
        st.lists(st.one_of(st.integers(0, 30), st.integers(0, 2**64 - 1)), max_size=20), max_size=4
    )
)
@settings(max_examples=15, deadline=None)
def test_a_hashed_table_has_the_bits_of_its_slow_twin(
    kind: str, optimizer: str, minibatches: list[list[int]]
) -> None:
    chosen = KINDS[kind].model_copy(update={"optimizer": OPTIMIZERS[optimizer]})
    table, twin = table_of(chosen), ReferenceHashed("t", chosen, SEED)
    for step, ids in enumerate(minibatches):
        united = Uniter().unite(np.array(ids, np.uint64))
        expected = np.array([twin.vector(id) for id in dict.fromkeys(ids)], np.float32).reshape(-1, 4)
        assert_same_bits(table.lookup(united.ids), expected)
        vectors = np.full((len(united.ids), 4), np.nan, np.float32)
        table.begin(united, table.prepare(united), step, vectors)
        assert_same_bits(vectors, expected)
        gradients = np.random.default_rng(step).normal(size=vectors.shape).astype(np.float32)
        assert table.learn(gradients, step)
        table.keep()
        twin.learn(dict(zip(dict.fromkeys(ids), gradients)), {id: ids.count(id) for id in ids}, step)
    cut = table.cut()
    assert cut.ids.tolist() == list(twin.dirty)
    rows = [twin.rows[id] for id in twin.dirty]
    assert cut.counts.tolist() == [row.count for row in rows]
    assert cut.last_steps.tolist() == [row.last_step for row in rows]
    if rows:
        assert_same_bits(cut.weights, np.array([row.weights for row in rows], np.float32))
        assert_same_bits(cut.slots, np.array([row.slots(optimizer) for row in rows], np.float32))


@pytest.mark.parametrize("combine", ["add", "concat", "multiply"])
def test_gradients_are_those_of_automatic_differentiation(combine: str) -> None:
    rng = np.random.default_rng(3)
    parts, width, ids, distinct = 3, 4, 20, 9
    dim = parts * width if combine == "concat" else width
    rows = rng.normal(size=(distinct, width)).astype(np.float32)
    inverse = rng.integers(0, distinct, ids * parts).astype(np.int32)
    upstream = rng.normal(size=(ids, dim)).astype(np.float32)

    def loss(weights: Any) -> Any:
        taken = weights[inverse].reshape(ids, parts, width)
        made = {"add": taken.sum(1), "concat": taken.reshape(ids, -1), "multiply": taken.prod(1)}[combine]
        return (made * upstream).sum()

    vectors, sums = np.empty((ids, dim), np.float32), np.zeros_like(rows)
    COMBINERS[combine].forward(rows, inverse, vectors)  # type: ignore[index]
    COMBINERS[combine].backward(rows, inverse, upstream, sums)  # type: ignore[index]
    np.testing.assert_allclose((vectors * upstream).sum(), loss(jnp.asarray(rows)), rtol=1e-4)
    np.testing.assert_allclose(sums, jax.grad(loss)(jnp.asarray(rows)), rtol=1e-4, atol=1e-5)


def test_a_row_that_is_zero_gets_its_gradient_from_the_other_parts() -> None:
    rows = np.array([[0.0], [3.0]], np.float32)
    sums = np.zeros((2, 1), np.float32)
    COMBINERS["multiply"].backward(rows, np.array([0, 1], np.int32), np.ones((1, 1), np.float32), sums)
    assert sums.tolist() == [[3.0], [0.0]]


@given(
    ids=st.lists(st.integers(0, 2**64 - 1), max_size=20),
    sizes=st.lists(st.integers(1, 2**31), min_size=1, max_size=4),
    seed=st.integers(0, 2**63 - 1),
)
@settings(max_examples=60, deadline=None)
def test_row_ids_follow_the_specification(ids: list[int], sizes: list[int], seed: int) -> None:
    schemes = ["independent", "quotient_remainder"] if len(sizes) == 2 else ["independent"]
    for scheme in schemes:
        hashing = Hashing(scheme=scheme, sizes=[min(s, 2**30) for s in sizes], combine="add")  # type: ignore[arg-type]
        found = RowIds(hashing, seed, "tägs").of(np.array(ids, np.uint64))
        assert found.tolist() == [r for id in ids for r in row_ids(hashing, seed, "tägs", id)]


def test_the_documented_row_ids_are_what_the_code_finds() -> None:
    text = (ROOT / "docs" / "row-ids.md").read_text(encoding="utf-8")
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `0x")]
    assert len(lines) >= 6
    for id, scheme, sizes, expected in lines:
        hashing = Hashing(
            scheme=scheme,  # type: ignore[arg-type]
            sizes=[int(size) for size in sizes.split(", ")],
            combine="add",
        )
        found = RowIds(hashing, 42, "item").of(np.array([int(id.strip("`"), 16)], np.uint64))
        assert [f"`{row_id:#018x}`" for row_id in found.tolist()] == expected.split(" ")


def test_quotient_and_remainder_tell_all_numbers_apart() -> None:
    hashing = Hashing(scheme="quotient_remainder", sizes=[7, 5], combine="add")
    found = RowIds(hashing, 1, "t").of(np.arange(3000, dtype=np.uint64)).reshape(-1, 2)
    assert len(np.unique(found, axis=0)) == 35
    assert set(found[:, 0].tolist()) == set(range(7))
    assert set(found[:, 1].tolist()) == {2**32 + n for n in range(5)}


def test_buckets_of_neighbouring_ids_are_uniform_and_parts_independent() -> None:
    hashing = Hashing(scheme="independent", sizes=[16, 16], combine="add")
    found = RowIds(hashing, 0, "t").of(np.arange(25_600, dtype=np.uint64)).reshape(-1, 2)
    cells = (found[:, 0] * 16 + (found[:, 1] & 0xFFFFFFFF)).astype(np.int64)
    counts = np.bincount(cells, minlength=256)
    # The statistic has 255 degrees of freedom: a mean of 255 and a standard deviation of 22.6.
    assert ((counts - 100) ** 2 / 100).sum() < 255 + 5 * 22.6


def test_multiplied_parts_start_around_one_and_the_product_like_a_row() -> None:
    kind = KINDS["three hashes, multiply"].model_copy(update={"init": Normal(std=0.01)})
    table = table_of(kind)
    ids = np.arange(500, dtype=np.uint64)
    united = Uniter().unite(ids)
    table.begin(united, table.prepare(united), 0, np.empty((500, 4), np.float32))
    rows = table.export()
    first = rows.ids < 2**32
    assert abs(rows.weights[first]).max() < 0.05 < 0.9 < rows.weights[~first].min()
    assert abs(table.lookup(ids)).max() < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_were_cut_make_the_same_table_elsewhere(kind: str) -> None:
    table, other = table_of(KINDS[kind]), table_of(KINDS[kind])
    served = HashedTable("t", 4, KINDS[kind].hashing, init=INIT, seed=SEED)  # type: ignore[arg-type]
    rng = np.random.default_rng(5)
    for step in range(6):
        random_step(table, rng, step)
        cut = table.cut()
        assert len(cut.ids) <= KINDS[kind].hashing.rows  # type: ignore[union-attr]
        other.load(cut)
        empty = np.empty((len(cut.ids), 0), np.float32)
        served.load(type(cut)(cut.ids, cut.weights, empty, cut.counts, cut.last_steps))
    ids = rng.integers(0, 60, 100).astype(np.uint64)
    assert_same_bits(table.lookup(ids), other.lookup(ids))
    assert_same_bits(table.lookup(ids), served.lookup(ids))
    random_step(table, np.random.default_rng(8), 7)
    random_step(other, np.random.default_rng(8), 7)
    assert_same_rows(table.cut(), other.cut())


def test_a_step_that_is_undone_leaves_no_trace() -> None:
    table, other = (
        table_of(KINDS["quotient_remainder, multiply"]),
        table_of(KINDS["quotient_remainder, multiply"]),
    )
    for each in (table, other):
        random_step(each, np.random.default_rng(1), 0)
    step_of(table, [1, 2, 3], np.full((3, 4), np.nan, np.float32), 1, keep=False)
    assert_same_rows(table.cut(), other.cut())
    ids = np.arange(30, dtype=np.uint64)
    assert_same_bits(table.lookup(ids), other.lookup(ids))


def test_rows_removed_start_again_and_are_tombstones() -> None:
    table = table_of(KINDS["hash"])
    random_step(table, np.random.default_rng(1), 0)
    row_id = table.cut().ids[:1]
    assert table.contains(row_id).all() and table.remove(row_id) == 1
    assert not table.contains(row_id).any() and table.remove(row_id) == 0
    assert table.cut().tombstones.tolist() == row_id.tolist()
    assert table.insert_missing(table_of(KINDS["hash"]).export()) == 0


def test_rows_of_other_settings_are_refused() -> None:
    small, large = table_of(KINDS["hash"]), table_of(KINDS["hash"].model_copy(update={"rows": 1000}))
    random_step(large, np.random.default_rng(1), 0)
    with pytest.raises(
        ConfigError, match=r"table 't': there is no row 0x[0-9a-f]+ among parts of \[11\] rows"
    ):
        small.load(large.cut())
    assert len(small) == 0 and not small.contains(np.array([2**32, 11, 2**64 - 1], np.uint64)).any()


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    moves=st.lists(
        st.tuples(st.booleans(), st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), max_size=8)),
        max_size=12,
    ),
)
@settings(max_examples=60, deadline=None)
def test_a_direct_index_is_a_set_of_row_ids(
    sizes: list[int], moves: list[tuple[bool, list[tuple[int, int]]]]
) -> None:
    index, oracle = DirectIndex("t", sizes), set[int]()
    every = [p << 32 | b for p, size in enumerate(sizes) for b in range(size)]
    for inserts, pairs in moves:
        ids = [p << 32 | b for p, b in pairs if p < len(sizes) and b < sizes[p]]
        array = np.array(ids, np.uint64)
        if inserts:
            rows, fresh = np.empty(len(ids), np.int32), np.empty(len(ids), np.bool_)
            assert index.find_or_insert(array, rows, fresh) == len(set(ids) - oracle)
            assert array[fresh].tolist() == [id for id in dict.fromkeys(ids) if id not in oracle]
            assert index.ids_of(rows).tolist() == ids
            oracle |= set(ids)
        else:
            expected = [id in oracle and id not in ids[:i] for i, id in enumerate(ids)]
            assert (index.erase(array) >= 0).tolist() == expected
            oracle -= set(ids)
        assert len(index) == len(oracle) and sum(index.counts) == len(oracle)
        assert set(index.ids_of(index.live_rows()).tolist()) == oracle
        assert (index.find(np.array(every, np.uint64)) >= 0).tolist() == [id in oracle for id in every]


def test_a_table_takes_a_byte_a_row_and_no_index() -> None:
    kind = HashTable(kind="hash", dim=8, rows=5000, optimizer=Adagrad())
    table = table_of(kind)
    ids = np.arange(200_000, dtype=np.uint64)
    united = Uniter().unite(ids)
    table.begin(united, table.prepare(united), 0, np.empty((len(ids), 8), np.float32))
    assert len(table) == 5000
    # Weights, accumulators, count and last step; the mark of what changed; the byte that says that it is there.
    assert table.memory_bytes - 5000 * (4 * (8 + 8 + 2) + 4 + 1) < 50_000


def test_each_row_is_wanted_once_whichever_id_needs_it() -> None:
    hashing = KINDS["quotient_remainder, add"].hashing
    assert hashing is not None
    wanted = HashedRows("t", hashing, SEED)
    every: list[int] = []
    for ids in ([1, 2, 2], [1, 3], list(range(100))):
        new = wanted.new(np.array(ids, np.uint64)).tolist()
        needed = dict.fromkeys(r for id in ids for r in row_ids(hashing, SEED, "t", id))
        assert new == [r for r in needed if r not in every]
        every += new
    assert len(every) == hashing.rows


def test_the_net_and_a_table_by_itself_agree() -> None:
    schema = Schema.model_validate({"labels": ["y"], "slots": {"a": {}, "b": {"many": True}}})
    kind = KINDS["quotient_remainder, multiply"].model_copy(
        update={"optimizer": Sgd(kind="sgd", learning_rate=0.1)}
    )
    layout = Layout.of(schema, {"t": 4})
    net, table = SparseNet(layout, {"t": kind}, SEED), table_of(kind)
    batch = batch_of({"a": ragged([[1], [2]]), "b": ragged([[2, 3, 2], []])})
    out = net.forward(batch, 0, 2)
    v = table.lookup(np.array([1, 2, 3], np.uint64))
    np.testing.assert_allclose(out.pooled, [[*v[0], *(2 * v[1] + v[2])], [*v[1], *np.zeros(4)]], rtol=1e-6)
    gradient = np.arange(16, dtype=np.float32).reshape(2, 8)
    assert net.backward(gradient, {}, 0)
    sums = np.array([gradient[0, :4], gradient[1, :4] + 2 * gradient[0, 4:], gradient[0, 4:]], np.float32)
    step_of(table, [1, 2, 2, 2, 3], sums, 0)
    np.testing.assert_allclose(net.score(batch, 2).pooled[0, :4], table.lookup(np.array([1], np.uint64))[0])
    assert_same_rows(net.cut()["t"], table.cut())
    assert net.rows("t") == len(table)
    assert net.collisions("t") == table.collisions and sum(table.collisions.occupied) == len(table)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            {"kind": "hash", "rows": 5, "rows_max": 7},
            "`rows_max` is for tables in which each id has a row of its own",
        ),
        (
            {"kind": "multi_hash", "rows": [5, 6, 7]},
            "rows lists 3 sizes and hashes = 'quotient_remainder' makes 2 parts",
        ),
        (
            {"kind": "multi_hash", "rows": 5, "combine": "concat", "dim": 3},
            "dim = 3 does not divide by 2 parts",
        ),
        ({"kind": "multi_hash", "rows": 1_500_000_000}, "rows are 3000000000 in all"),
        ({"kind": "multi_hash", "rows": 5, "hashes": 9}, "less than or equal to 8"),
        ({"kind": "hash"}, "Field required"),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_words(text: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TABLE.validate_python({"dim": 4} | text)


def test_a_table_is_dynamic_where_no_kind_is_named() -> None:
    assert TABLE.validate_python({"dim": 4}).hashing is None
    assert TABLE.validate_python({"dim": 4, "kind": "hash", "rows": 3}).hashing.sizes == [3]
