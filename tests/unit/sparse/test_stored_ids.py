"""Ids that a store may have: none that was added is ever denied, few others are affirmed, and a log fills the set."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamtrain.fetching import add_stored
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.fold import fold
from streamtrain.sparse import stored_ids
from streamtrain.sparse.stored_ids import StoredIds
from tests.reference_log import append_epochs

ids_lists = st.lists(st.integers(0, 2**64 - 1), max_size=50)


def complete(ids: StoredIds) -> StoredIds:
    ids.complete = True
    return ids


@given(added=ids_lists, asked=ids_lists, size=st.integers(0, 1 << 12))
def test_what_was_added_is_never_denied(added: list[int], asked: list[int], size: int) -> None:
    stored = complete(StoredIds("t", size))
    stored.add(np.array(added, np.uint64))
    held = stored.may_hold(np.array(added + asked, np.uint64))
    assert held[: len(added)].all()
    assert not (held.any() and not added)


@pytest.mark.parametrize(("bits", "share"), [(10, 0.015), (5, 0.11), (0.01, 1.0)])
def test_few_others_are_affirmed_where_the_set_has_room(bits: float, share: float) -> None:
    random, count = np.random.default_rng(0), 100_000
    stored = complete(StoredIds("t", int(count * bits / 8)))
    assert stored.memory_bytes <= max(count * bits / 8, 64)
    stored.add(random.integers(0, 2**64, count, np.uint64))
    assert stored.may_hold(np.arange(count, dtype=np.uint64)).mean() <= share


def test_until_it_is_complete_every_id_may_be_stored() -> None:
    stored = StoredIds("t", 1 << 10)
    assert stored.may_hold(np.arange(5, dtype=np.uint64)).all()
    assert not complete(stored).may_hold(np.arange(5, dtype=np.uint64)).any()


def test_a_set_that_fills_with_what_expired_begins_again_and_denies_it_then() -> None:
    random = np.random.default_rng(0)
    live, gone = random.integers(0, 2**64, (2, 20_000), np.uint64)
    asked: list[StoredIds] = []
    stored = StoredIds("t", 1 << 12, asked.append)
    stored.add(live[:100])
    stored.renew()
    complete(stored).renew()
    for ids in np.split(gone, 100):
        stored.add(ids)
        stored.renew()
        if asked:
            break
    assert asked == [stored] and not stored.complete
    assert stored.may_hold(gone).all(), "until it is filled, all may be there"
    stored.add(live[:100])
    complete(stored)
    assert stored.may_hold(live[:100]).all() and stored.may_hold(gone).mean() < 0.01


def test_a_set_that_is_full_of_what_is_stored_begins_again_only_when_twice_as_many_have_come() -> None:
    ids = np.random.default_rng(0).integers(0, 2**64, 20_000, np.uint64)
    asked: list[StoredIds] = []
    stored = StoredIds("t", 1 << 12, asked.append)
    stored.add(ids[:8000])
    complete(stored).renew()
    stored.add(ids[:15_000])
    stored.renew()
    assert not asked and stored.complete
    stored.add(ids[15_000:])
    stored.renew()
    assert asked == [stored]


def test_threads_that_add_at_once_lose_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_ids, "ADDED_AT_ONCE", 16)
    stored = complete(StoredIds("t", 1 << 12))
    parts = np.random.default_rng(0).integers(0, 2**64, (4, 4000), np.uint64)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(stored.add, parts))
    assert stored.may_hold(parts.ravel()).all()


def test_a_log_fills_the_set_also_while_it_is_folded_and_collected(tmp_path: Path) -> None:
    log = EpochLog.create(tmp_path / "log", "clicks", {"seed": 1})
    append_epochs(log, 3)

    class Folding(StoredIds):
        folded = False

        def add(self, ids: NDArray[np.uint64]) -> None:
            super().add(ids)
            if not self.folded:
                self.folded = True
                append_epochs(log, 6)
                fold(log.path)
                log.collect(1)

    stored = Folding("user", 1 << 12)
    add_stored(log, {"user": stored, "of no record yet": StoredIds("of no record yet", 64)})
    assert stored.complete
    assert stored.may_hold(np.array([1, 2, *range(11, 17)], np.uint64)).all()
    assert not stored.may_hold(np.arange(100, 200, dtype=np.uint64)).all()


def test_a_damaged_log_leaves_the_set_incomplete_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = EpochLog.create(tmp_path / "log", "clicks", {"seed": 1})
    append_epochs(log, 2)
    content = bytearray(log.epoch_path(1).read_bytes())
    content[-1] ^= 1
    log.epoch_path(1).write_bytes(content)
    stored = StoredIds("user", 1 << 12)
    with caplog.at_level(logging.WARNING):
        add_stored(log, {"user": stored})
    assert not stored.complete and stored.may_hold(np.array([12345], np.uint64)).all()
    assert "asked for new ids too" in caplog.text and str(log.epoch_path(1)) in caplog.text
