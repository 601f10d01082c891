"""How rows start: a specified function of (seed, table, id), with test vectors that must never change."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter

from streamtrain.sparse.init import normal_quantiles, table_key
from streamtrain.sparse.settings import AnyInit, Constant, Normal, Uniform
from streamtrain.sparse.table import EmbeddingTable
from tests.reference_sparse import initial_weights
from tests.unit.sparse.cases import assert_same_bits

IDS = np.array([0, 1, 2**64 - 1], np.uint64)
INITS = [Normal(std=0.01), Uniform(kind="uniform", scale=0.01), Constant(kind="constant", value=0.25)]
DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "initial-rows.md"


def initial(
    init: AnyInit, dim: int, ids: np.ndarray = IDS, seed: int = 42, table: str = "item"
) -> np.ndarray:
    return EmbeddingTable(table, dim, init=init, seed=seed, rows_max=4).lookup(ids)


def test_initial_weights_are_those_of_the_document() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    vectors = re.findall(r"^\| (\w+), (\w+) ([\d.]+) \| `(\d+)` \| (.*) \|$", text, re.MULTILINE)
    assert len(vectors) == 9
    for kind, option, number, id, bits in vectors:
        init = TypeAdapter(AnyInit).validate_python({"kind": kind, option: float(number)})
        weights = initial(init, 5, ids=np.array([int(id)], np.uint64))[0]
        assert [f"`0x{word:08x}`" for word in weights.view(np.uint32).tolist()] == bits.split()


def test_the_table_of_quantiles_is_that_of_the_document() -> None:
    digest = hashlib.sha256(normal_quantiles().astype("<f4").tobytes()).hexdigest()
    assert digest in DOCUMENT.read_text(encoding="utf-8")


def test_the_key_of_a_table_never_changes() -> None:
    assert table_key(42, "item") == 0xA6820149879E98BB


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("dim", [1, 4, 9])
def test_initial_weights_are_what_the_text_says(init: AnyInit, dim: int) -> None:
    for id, weights in zip(IDS.tolist(), initial(init, dim), strict=True):
        assert_same_bits(weights, initial_weights(init, 42, "item", id, dim))


def test_seed_table_and_id_all_matter() -> None:
    init = Normal(std=1.0)
    first = initial(init, 8)
    for other in (
        initial(init, 8, seed=43),
        initial(init, 8, table="user"),
        initial(init, 8, ids=IDS + np.uint64(7)),
    ):
        assert (first != other).mean() > 0.99


def test_a_wider_row_begins_like_a_narrower_one() -> None:
    for init in INITS:
        assert_same_bits(initial(init, 9)[:, :5].copy(), initial(init, 5))


def test_normal_weights_have_the_moments_of_a_normal_distribution() -> None:
    weights = initial(Normal(std=2.0), 64, ids=np.arange(10_000, dtype=np.uint64)).astype(np.float64) / 2
    assert abs(weights.mean()) < 0.005
    assert abs(weights.var() - 1) < 0.01
    assert abs((weights**3).mean()) < 0.02
    assert abs((weights**4).mean() - 3) < 0.05
    correlations = np.corrcoef(weights.T) - np.eye(64)
    assert np.abs(correlations).max() < 0.06


def test_uniform_weights_fill_their_interval() -> None:
    weights = initial(Uniform(kind="uniform", scale=3.0), 64, ids=np.arange(2_000, dtype=np.uint64)) / 3
    assert weights.min() >= -1 and weights.max() < 1
    counts, _ = np.histogram(weights, bins=16, range=(-1, 1))
    assert np.abs(counts / weights.size - 1 / 16).max() < 0.005
