"""Slow, obvious oracles of the index: where an id has its home, and what must hold of all slots at any moment."""

from __future__ import annotations

import numpy as np

from streamtrain.sparse.index import SLOTS_MIN, Index
from streamtrain.sparse.turns import rows_in_turn

__all__ = ["assert_all_have_their_turn", "assert_in_order", "home", "tag", "ticket"]


def tag(id: int) -> int:
    """The upper half of the mixed id."""
    return ((id ^ id >> 32) * 0x9E3779B97F4A7C15 & 2**64 - 1) >> 32


def ticket(id: int) -> int:
    """The tag with its upper 16 bits the other way round, as text is turned round."""
    bits = f"{tag(id):032b}"
    return int(bits[15::-1] + bits[16:], 2)


def home(id: int, bits: int, split: int) -> int:
    """The home slot: of the coarse size below the split, of twice that size from there on."""
    coarse = tag(id) * 2**bits // 2**32
    return coarse if coarse < split else tag(id) * 2 ** (bits + 1) // 2**32


def assert_in_order(index: Index) -> None:
    """Each id stands once, at its home or behind it with no empty slot in between; and there is room for more."""
    bits, split = index.layout
    assert 0 <= split <= 2**bits and 2**bits >= SLOTS_MIN
    held = index.entries[: 2 ** (bits + 1) + len(index)]
    places = np.flatnonzero(held)
    assert len(places) == len(index)
    empty = np.flatnonzero(held == 0)
    for place in places.tolist():
        entry = int(held[place])
        id = int(index.row_ids[(entry & 2**32 - 1) - 1])
        assert entry >> 32 == tag(id)
        begin = home(id, bits, split)
        assert begin <= place
        after = np.searchsorted(empty, begin)
        assert after == len(empty) or empty[after] > place, "an empty slot between an id and its home"
    assert len(index) <= 0.72 * 2**bits


def assert_all_have_their_turn(index: Index, ids: set[int], every: int) -> None:
    """In `every` steps each id comes once, in the step that its ticket says, by ticket and id."""
    for step in range(every):
        first, end = step * 2**32 // every, (step + 1) * 2**32 // every
        due = sorted((ticket(id), id) for id in ids if first <= ticket(id) < end)
        assert index.row_ids[rows_in_turn(index, step, every)].tolist() == [id for _, id in due]
