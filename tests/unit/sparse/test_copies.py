"""The memory of cuts: used again when it is free, never while somebody holds it, and not kept for ever."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from streamtrain.sparse.copies import Copies


def arrays(copies: Copies, rows: int) -> list[NDArray[Any]]:
    return copies.empty([((rows, 3), np.float32), ((rows, 0), np.float32), ((rows,), np.uint32)])


def test_arrays_are_apart_contiguous_and_aligned() -> None:
    weights, slots, counts = arrays(Copies(), 7)
    weights[:], counts[:] = 1.5, 9
    assert weights.shape == (7, 3) and slots.shape == (7, 0) and weights.dtype == np.float32
    assert (weights == 1.5).all() and (counts == 9).all()
    assert all(a.flags.c_contiguous and not a.ctypes.data % 64 for a in (weights, counts))


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a,
        lambda a: a[2:5],
        lambda a: memoryview(a)[1:2],
        lambda a: np.frombuffer(a, np.uint32),
    ],
)
def test_memory_is_not_used_again_while_any_view_of_it_is_held(view: Any) -> None:
    copies = Copies()
    weights, _, counts = arrays(copies, 100)
    counts[:] = 7
    held = view(counts)
    del weights, counts, _
    others = [arrays(copies, 100) for _ in range(5)]
    for other in others:
        other[2][:] = 8
    assert (np.asarray(held) == 7).all()
    assert all((other[2] == 8).all() for other in others)


def test_free_memory_is_used_again_and_no_more_than_two_blocks_are_kept() -> None:
    copies, seen = Copies(), set()
    held = arrays(copies, 1000)
    for _ in range(20):
        held = arrays(
            copies, 1000
        )  # The one before is held until this one is there, as an epoch is that is being written.
        seen.add(held[0].ctypes.data)
    assert len(seen) == 2
    at_rest = copies.memory_bytes
    keep = [arrays(copies, 1000) for _ in range(10)]
    assert len({array[0].ctypes.data for array in keep}) == 10 and copies.memory_bytes == at_rest


def test_memory_of_a_far_larger_cut_is_let_go_of() -> None:
    copies = Copies()
    large = arrays(copies, 1_000_000)
    peak = copies.memory_bytes
    del large
    for _ in range(3):
        arrays(copies, 1000)
    assert copies.memory_bytes < peak / 100
    assert [a.shape for a in arrays(copies, 0)] == [(0, 3), (0, 0), (0,)]
