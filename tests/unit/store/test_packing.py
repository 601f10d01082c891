"""Which shard an id belongs to, rows as bytes, and how an epoch is cut into calls."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.errors import StoreRefused
from streamtrain.store import StoreDescription
from streamtrain.store.packing import group, pack_rows, shard_of, unpack_values, value_dtype
from streamtrain.store.shares import Shares, plan
from tests.reference_store import DIMS, as_dict, random_record, record_of, rows_of

ids_of_any_kind = st.lists(st.integers(0, 2**64 - 1), unique=True, max_size=60)


@given(ids=ids_of_any_kind, shards=st.integers(1, 1024))
def test_the_shard_of_an_id_is_the_specified_one(ids: list[int], shards: int) -> None:
    specified = [((i * 0x9E3779B97F4A7C15 % 2**64 >> 32) * shards) >> 32 for i in ids]
    assert shard_of(np.array(ids, np.uint64), shards).tolist() == specified


def test_the_shards_of_the_documented_ids_never_change() -> None:
    ids = np.array([0, 1, 2, 3, 2**63, 2**64 - 1], np.uint64)
    assert shard_of(ids, 16).tolist() == [0, 9, 3, 13, 8, 6]
    assert shard_of(ids, 5).tolist() == [0, 3, 1, 4, 2, 1]


@pytest.mark.parametrize("shards", [3, 16, 100])
def test_even_consecutive_ids_spread_over_shards(shards: int) -> None:
    share = (
        np.bincount(shard_of(np.arange(100_000, dtype=np.uint64), shards), minlength=shards)
        * shards
        / 100_000
    )
    assert share.min() > 0.98 and share.max() < 1.02


@given(ids=ids_of_any_kind, shards=st.integers(1, 9))
def test_grouping_keeps_every_id_once_in_its_shard_and_in_order(ids: list[int], shards: int) -> None:
    array = np.array(ids, np.uint64)
    grouped = group(array, shards)
    of = shard_of(array, shards)
    for shard in range(shards):
        assert grouped.shard(shard).tolist() == np.flatnonzero(of == shard).tolist()


def test_a_packed_row_is_laid_out_as_specified() -> None:
    rows = rows_of([2**64 - 2, 7], 2, 1, seed=4)
    packed = pack_rows(rows, np.array([1, 0]))
    fields = [struct.unpack_from("<Q2fff", packed, 0)[:4], struct.unpack_from("<Q2fII", packed, 28)[:3]]
    assert len(packed) == 2 * (8 + 4 * 3 + 8)
    assert fields[0] == (7, *rows.weights[1], rows.slots[1, 0])
    assert fields[1][0] == 2**64 - 2
    assert struct.unpack_from("<II", packed, 20) == (rows.counts[1], rows.last_steps[1])


@given(ids=ids_of_any_kind, dim=st.integers(1, 5), slots=st.integers(0, 5))
def test_unpacking_undoes_packing_bit_by_bit(ids: list[int], dim: int, slots: int) -> None:
    rows = rows_of(ids, dim, slots)
    dtype = np.dtype([("id", "<u8"), ("value", value_dtype(dim, slots))])
    packed = np.frombuffer(pack_rows(rows, np.arange(len(ids))), dtype)
    unpacked = unpack_values(packed["id"], packed["value"])
    assert as_dict(unpacked) == as_dict(rows)
    assert unpacked.weights.shape == (len(ids), dim) and unpacked.slots.shape == (len(ids), slots)


kinds = st.sampled_from([(table, what) for table in "abc" for what in ("rows", "tombstones")])


@given(
    sizes=st.dictionaries(kinds, st.tuples(st.integers(0, 50), st.integers(8, 60))),
    rows_max=st.integers(1, 20),
    bytes_max=st.integers(1, 300),
)
def test_a_plan_covers_everything_once_in_order_and_within_its_bounds(
    sizes: dict[tuple[str, str], tuple[int, int]], rows_max: int, bytes_max: int
) -> None:
    parts = plan(sizes, rows_max, bytes_max)
    assert parts
    for kind, (count, _) in sizes.items():
        covered = [i for part in parts if kind in part for i in range(part[kind].start, part[kind].stop)]
        assert covered == list(range(count))
    for part in parts:
        lengths = {kind: piece.stop - piece.start for kind, piece in part.items()}
        assert sum(lengths.values()) <= rows_max
        in_bytes = sum(length * sizes[kind][1] for kind, length in lengths.items())
        assert in_bytes <= bytes_max or sum(lengths.values()) == 1
        assert lengths or len(parts) == 1


def test_all_shares_together_are_the_record() -> None:
    record = random_record(1, rows=300)
    shares = Shares(record, StoreDescription("m", DIMS, 7))
    for at, (table, shape) in enumerate(sorted(DIMS.items())):
        packed, removed = b"", b""
        for shard in range(7):
            for part in shares.parts(shard):
                value_bytes, rows, gone, tags = shares.arguments(shard, part)[4 * at : 4 * at + 4]
                assert tags == b"-"
                assert value_bytes == value_dtype(*shape).itemsize
                packed, removed = packed + bytes(rows), removed + bytes(gone)  # type: ignore[arg-type]
        held = np.frombuffer(packed, np.dtype([("id", "<u8"), ("value", value_dtype(*shape))]))
        assert as_dict(unpack_values(held["id"], held["value"])) == as_dict(record.tables[table])
        assert sorted(np.frombuffer(removed, "<u8")) == sorted(record.tables[table].tombstones)


def test_a_shard_without_rows_still_gets_the_call_that_moves_its_epoch() -> None:
    shares = Shares(record_of(3, {}), StoreDescription("m", DIMS, 2))
    assert shares.parts(1) == [{}]
    assert shares.arguments(1, {}) == [32, b"", b"", b"-", 12, b"", b"", b"-"]


def test_a_table_that_the_store_was_not_opened_for_is_refused() -> None:
    with pytest.raises(StoreRefused, match="epoch 3 has rows of table 'other'"):
        Shares(record_of(3, {"other": rows_of([1], 1, 1)}), StoreDescription("m", DIMS, 2))


@pytest.mark.parametrize("model_id", ["", "a{b}", "a b", "x" * 65])
def test_a_model_id_that_would_split_a_shards_keys_is_refused(model_id: str) -> None:
    with pytest.raises(ValueError, match="model_id"):
        StoreDescription(model_id, DIMS, 2)
