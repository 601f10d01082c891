"""Rows on demand: each id is asked for once, and no answer is never an answer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

import numpy as np
import pytest

from streamtrain.errors import StoreBehind, StoreRefused, StoreUnavailable, TableFull
from streamtrain.layout import Layout
from streamtrain.log.record import TableRows
from streamtrain.metrics import Metrics
from streamtrain.samples.batch import Ragged, SampleBatch
from streamtrain.samples.schema import Schema
from streamtrain.sparse.wanted import DynamicRows
from streamtrain.store import patience as module
from streamtrain.store.prefetch import StorePrefetch
from streamtrain.store.progress import Progress

LAYOUT = Layout.of(
    Schema.model_validate(
        {"labels": ["y"], "slots": {"a": {"table": "t"}, "b": {"table": "t"}, "c": {"table": "u"}}}
    ),
    {"t": 1, "u": 1},
)


class Rows:
    """A store that holds even ids, and a repairer of it; both raise what `faults` and `repair_faults` hold first."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[int], int]] = []
        self.faults: deque[Exception] = deque()
        self.repair_faults: deque[Exception] = deque()
        self.repairs: list[int] = []

    async def pull(self, table: str, ids: np.ndarray, epoch_min: int) -> tuple[np.ndarray, TableRows]:
        await asyncio.sleep(0)
        self.asked.append((table, ids.tolist(), epoch_min))
        if self.faults:
            raise self.faults.popleft()
        found = ids % 2 == 0
        n = int(found.sum())
        one = np.ones((n, 1), np.float32)
        return found, TableRows(ids[found], one, one, np.ones(n, np.uint32), np.ones(n, np.uint32))

    async def repair(self, epoch: int) -> int:
        self.repairs.append(epoch)
        if self.repair_faults:
            raise self.repair_faults.popleft()
        return epoch


def prefetch(rows: Rows, rows_max: int = 100) -> StorePrefetch:
    wanted = {name: DynamicRows(name, rows_max) for name in ("t", "u")}
    return StorePrefetch(rows, rows, LAYOUT, wanted, Progress(9), Metrics())  # type: ignore[arg-type]


def batch(a: Sequence[int], b: Sequence[int], c: Sequence[int]) -> SampleBatch:
    """One id a slot in each sample."""
    n = len(a)
    ids = {
        name: Ragged(np.array(values, np.uint64), np.arange(n + 1, dtype=np.int64))
        for name, values in {"a": a, "b": b, "c": c}.items()
    }
    zeros, times = np.zeros((n, 1), np.float32), np.zeros(n, np.int64)
    return SampleBatch(n, ids, zeros[:, :0], zeros, zeros[:, 0], times, times)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE_FIRST_S", 0.0)


async def test_each_id_is_asked_for_once_whatever_slot_names_it_and_whether_it_is_there() -> None:
    rows = Rows()
    made = prefetch(rows)
    pulled = (await made.rows_for(batch([1, 2, 2], [2, 4, 1], [2, 2, 3]))).rows
    assert rows.asked == [("t", [1, 2, 4], 9), ("u", [2, 3], 9)]
    assert {table: part.ids.tolist() for table, part in pulled.items()} == {"t": [2, 4], "u": [2]}
    rows.asked.clear()
    assert (await made.rows_for(batch([2, 1], [4, 4], [3, 2]))).rows == {}
    assert (await made.rows_for(batch([6], [1], [2]))).rows["t"].ids.tolist() == [6]
    assert rows.asked == [("t", [6], 9)]


async def test_an_empty_batch_asks_for_nothing() -> None:
    rows = Rows()
    assert (await prefetch(rows).rows_for(batch([], [], []))).rows == {} and rows.asked == []


async def test_a_store_that_does_not_answer_is_waited_for_and_no_row_is_lost() -> None:
    rows = Rows()
    rows.faults.extend([StoreUnavailable("away")] * 3)
    pulled = (await prefetch(rows).rows_for(batch([2], [4], [1]))).rows
    assert pulled["t"].ids.tolist() == [2, 4] and rows.repairs == []
    assert [ids for table, ids, _ in rows.asked if table == "t"] == [[2, 4]] * 4


async def test_a_shard_that_lost_its_rows_is_repaired_also_when_that_takes_several_tries() -> None:
    rows = Rows()
    rows.faults.extend([StoreBehind("lost"), StoreBehind("lost")])
    rows.repair_faults.append(StoreUnavailable("away"))
    pulled = (await prefetch(rows).rows_for(batch([2], [2], [1]))).rows
    assert pulled["t"].ids.tolist() == [2] and rows.repairs == [9, 9]


async def test_a_store_that_refuses_stops_the_one_who_asks() -> None:
    rows = Rows()
    rows.faults.append(StoreRefused("another model"))
    with pytest.raises(StoreRefused):
        await prefetch(rows).rows_for(batch([2], [2], [1]))


async def test_more_ids_than_the_table_may_hold_are_refused() -> None:
    with pytest.raises(TableFull, match="rows_max = 2"):
        await prefetch(Rows(), rows_max=2).rows_for(batch([1, 2], [3, 4], [1, 1]))
