"""What is the LMDB store's own: its file, which is one daemon's, bounded, and made anew where it is damaged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from streamtrain.errors import StoreBehind, StoreRefused, StoreUnavailable
from streamtrain.sparse.turns import tickets_of
from streamtrain.store import Store, StoreDescription, StoreSettings, lmdb_file, open_store
from streamtrain.store.lmdb_packing import KEY_BYTES
from streamtrain.store.lmdb_rows import LmdbRows
from tests.reference_store import DIMS, as_dict, random_record, record_of, rows_of

DESCRIPTION = StoreDescription("model-of-the-test", DIMS, 3)


def made(folder: Path, **options: object) -> Store:
    store = open_store(StoreSettings(url=f"lmdb://{folder}", **options))  # type: ignore[arg-type]
    assert store is not None
    return store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = made(tmp_path)
    await opened.open(DESCRIPTION)
    yield opened
    await opened.close()


def data(folder: Path) -> Path:
    return folder / DESCRIPTION.model_id[:12] / "data.mdb"


async def test_rows_and_their_epoch_are_there_after_a_restart(tmp_path: Path, store: Store) -> None:
    rows = rows_of(list(range(1000)), *DIMS["items"])
    await store.load_base(record_of(4, {"items": rows}))
    await store.close()
    again = made(tmp_path)
    await again.open(DESCRIPTION)
    assert await again.applied_epoch() == 4
    _, pulled = await again.pull("items", rows.ids, epoch_min=4)
    assert as_dict(pulled) == as_dict(rows)
    await again.close()


async def test_a_second_process_is_refused(tmp_path: Path, store: Store) -> None:
    second = made(tmp_path)
    with pytest.raises(StoreRefused, match=r"in use by another process \(pid \d+.*of this daemon's own"):
        await second.open(DESCRIPTION)
    await second.close()


async def test_a_full_file_says_so_keeps_what_it_has_and_takes_more_with_more_room(tmp_path: Path) -> None:
    small = made(tmp_path, disk_bytes_max=1 << 24)
    await small.open(DESCRIPTION)
    await small.load_base(record_of(0, {"items": rows_of([1], *DIMS["items"])}))
    large = record_of(1, {"items": rows_of(list(range(400_000)), *DIMS["items"])})
    with pytest.raises(StoreUnavailable, match=r"store\.disk_bytes_max is 16777216; raise that"):
        await small.apply(large)
    assert await small.applied_epoch() == 0
    found, _ = await small.pull("items", np.array([1, 2], np.uint64))
    assert found.tolist() == [True, False]
    await small.close()
    larger = made(tmp_path)
    await larger.open(DESCRIPTION)
    await larger.apply(large)
    assert await larger.applied_epoch() == 1 and data(tmp_path).stat().st_size > 1 << 24
    await larger.close()


async def test_a_file_that_was_open_when_the_machine_stopped_is_filled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = record_of(3, {"items": rows_of([1, 2], *DIMS["items"])})
    boot = tmp_path / "boot_id"
    monkeypatch.setattr(lmdb_file, "_BOOT_ID", boot)

    async def held(run: str, close: bool) -> int | None:
        """What the store holds in a run of the machine; it is closed, or the machine stops."""
        boot.write_text(run)
        rows = LmdbRows(tmp_path / "rows", 1 << 24)
        rows.open(DESCRIPTION)
        epoch = rows.epoch()
        rows.load_base(base)
        if close:
            rows.close()
        else:
            rows._file._env.close()
        return epoch

    assert await held("first", close=False) is None
    # The process alone was killed: its pages were the kernel's.
    assert await held("first", close=False) == 3
    assert await held("second", close=True) is None
    assert await held("third", close=False) == 3
    assert await held("fourth", close=True) is None


@pytest.mark.parametrize("damage", ["cut", "zeroed", "scribbled"])
async def test_a_damaged_file_is_noticed_and_filled_again(tmp_path: Path, damage: str) -> None:
    base = record_of(0, {"items": rows_of(list(range(20_000)), *DIMS["items"])})
    store = made(tmp_path)
    await store.open(DESCRIPTION)
    await store.load_base(base)
    await store.close()
    with data(tmp_path).open("r+b") as file:
        if damage == "cut":
            file.truncate(1 << 18)
        elif damage == "zeroed":
            file.write(bytes(1 << 13))
        else:
            content = bytearray(file.read())
            at = content.index(base.tables["items"].weights[700].tobytes())
            content[at] ^= 1
            file.seek(0)
            file.write(content)
    store = made(tmp_path)
    await store.open(DESCRIPTION)
    with pytest.raises(StoreBehind, match="nothing"):
        await store.pull("items", base.tables["items"].ids)
    assert await store.applied_epoch() is None
    await store.load_base(base)
    _, rows = await store.pull("items", base.tables["items"].ids)
    assert as_dict(rows) == as_dict(base.tables["items"])
    await store.close()


@pytest.mark.parametrize("first", ["pulled", "asked"])
async def test_rows_that_another_hand_removed_are_noticed(store: Store, first: str) -> None:
    base = record_of(0, {"items": rows_of([1, 2, 3], *DIMS["items"])})
    await store.load_base(base)
    rows: LmdbRows = store._held[0]  # type: ignore[attr-defined]
    await asyncio.to_thread(
        rows._file.write, lambda txn: rows._remove(txn, "items", np.array([2], np.uint64))
    )
    if first == "pulled":
        with pytest.raises(StoreBehind, match="table 'items' has 2 rows"):
            await store.pull("items", base.tables["items"].ids)
    assert await store.applied_epoch() is None
    await store.load_base(base)
    assert (await store.pull("items", base.tables["items"].ids))[0].all()


async def test_pulls_are_answered_while_an_epoch_is_written(store: Store) -> None:
    await store.load_base(random_record(0))
    rows = rows_of(list(range(30_000)), *DIMS["items"])
    applying = asyncio.create_task(store.apply(record_of(1, {"items": rows})))
    answers = 0
    while not applying.done():
        found, _ = await store.pull("items", rows.ids[1:2000])
        # Of the epoch, all or nothing is seen.
        assert found.all() or not found.any()
        answers += 1
    await applying
    assert answers and (await store.pull("items", rows.ids))[0].all()


async def test_keys_lie_in_the_order_in_which_sweeps_look_at_ids(store: Store) -> None:
    ids = np.random.default_rng(1).integers(0, 2**64, 500, np.uint64)
    await store.load_base(record_of(0, {"users": rows_of(ids.tolist(), *DIMS["users"])}))
    rows: LmdbRows = store._held[0]  # type: ignore[attr-defined]
    with rows._file.reading() as txn:
        keys = [bytes(key) for key, _ in txn.cursor(rows._file.tables["users"])]
    expected = ids[np.lexsort((ids, tickets_of(ids)))]
    assert [int.from_bytes(key[4:], "big") for key in keys] == expected.tolist()
    assert {len(key) for key in keys} == {KEY_BYTES}
