"""Samples in memory, grouped ones above all: slices and joins say of each sample what the whole says of it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.samples.batch import SampleBatch
from streamtrain.samples.schema import LEAF, CrossSlot, DenseSlot, Level, Schema, SequenceSlot, SparseSlot
from tests.trees import grouped_batch, steps_of_trees

SCHEMA = Schema(
    labels=["click"],
    levels=[Level(name="user", children="ads"), Level(name="ad", children="creatives")],
    slots={
        "who": SparseSlot(level="user"),
        "history": SequenceSlot(kind="sequence", level="user"),
        "campaign": SparseSlot(level="ad", many=True, weights="shares", pooling="weighted"),
        "creative": SparseSlot(many=True),
        "price": DenseSlot(kind="dense", level="ad"),
        "pair": CrossSlot(kind="cross", of=["who", "campaign"]),
    },
)


def samples(batch: SampleBatch) -> list[Any]:
    """Each sample with everything that it and the nodes above it hold, read one by one."""
    found = []
    for i in range(batch.size):
        held: list[Any] = [batch.dense[i].tolist(), batch.labels[i].tolist(), float(batch.weights[i])]
        for name, ragged in batch.ids.items():
            row = i if ragged.level == LEAF else int(batch.nodes[ragged.level][i])
            first, last = ragged.offsets[row], ragged.offsets[row + 1]
            shares = None if ragged.weights is None else ragged.weights[first:last].tolist()
            held.append((name, ragged.values[first:last].tolist(), shares))
        found.append(held)
    return found


def check_tree(batch: SampleBatch) -> None:
    """The laws of `nodes`, and that every slot has as many rows as its level has nodes."""
    above = np.zeros(batch.size, bool)
    for nodes in batch.nodes.values():
        assert nodes.dtype == np.int32 and len(nodes) == batch.size
        steps = np.diff(nodes, prepend=np.int32(-1))
        assert set(steps.tolist()) <= {0, 1} and (batch.size == 0 or steps[0] == 1)
        assert not (above & (steps == 0)).any(), "a level goes on although the one above it has"
        above = steps > 0
    for ragged in batch.ids.values():
        assert len(ragged.offsets) == batch.rows(ragged.level) + 1
        assert ragged.offsets[0] == 0 and ragged.offsets[-1] == len(ragged.values)


@given(steps_of_trees(2), st.data())
def test_slices_of_trees_are_trees_and_join_to_the_same_samples(
    steps: list[int], data: st.DataObject
) -> None:
    whole = grouped_batch(np.random.default_rng(len(steps)), SCHEMA, steps)
    cuts = sorted(data.draw(st.lists(st.integers(0, whole.size), max_size=4)))
    parts = [whole.slice(start, stop) for start, stop in pairwise([0, *cuts, whole.size])]
    for part in parts:
        check_tree(part)
    joined = SampleBatch.concat(parts)
    check_tree(joined)
    assert samples(joined) == samples(whole)
    assert [one for part in parts for one in samples(part)] == samples(whole)


@given(steps_of_trees(2))
def test_expanded_samples_hold_what_their_nodes_held(steps: list[int]) -> None:
    grouped = grouped_batch(np.random.default_rng(1), SCHEMA, steps)
    flat = grouped.expanded()
    assert not flat.nodes and all(ragged.level == LEAF for ragged in flat.ids.values())
    check_tree(flat)
    assert samples(flat) == samples(grouped)


def test_samples_without_nodes_join_grouped_ones_as_trees_of_their_own() -> None:
    random = np.random.default_rng(2)
    grouped, other = (grouped_batch(random, SCHEMA, [0, 2, 1, 2, 0]) for _ in range(2))
    for parts in ([grouped, other.expanded()], [other.expanded(), grouped]):
        joined = SampleBatch.concat(parts)
        check_tree(joined)
        assert samples(joined) == [one for part in parts for one in samples(part)]
        assert joined.rows("user") == 2 + 5


def test_a_tree_across_the_edge_is_split_and_keeps_its_node_on_both_sides() -> None:
    batch = grouped_batch(np.random.default_rng(3), SCHEMA, [0, 2, 2, 1, 2])
    left, right = batch.slice(0, 2), batch.slice(2, 5)
    assert left.nodes["user"].tolist() == [0, 0] and right.nodes["user"].tolist() == [0, 0, 0]
    assert left.nodes["ad"].tolist() == [0, 0] and right.nodes["ad"].tolist() == [0, 1, 1]
    assert (
        left.ids["who"].values.tolist()
        == right.ids["who"].values.tolist()
        == batch.ids["who"].values.tolist()
    )
