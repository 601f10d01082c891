"""Rows that leave memory and come back: a table with a bound is the table without one, however things fall together.

The feed's side is real (prefetch, tier, sweeps, residents, progress), and so are the minibatcher and the table; the store is a dict
that applies epochs late, loses them, and is repaired. What happens next is drawn: a chunk is fed, a minibatch is learned, full or
not, an epoch is cut, one is applied, everything but the log is lost.
"""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamtrain.errors import StoreBehind, TableFull
from streamtrain.layout import Layout
from streamtrain.log.record import FilterRows, TableRows
from streamtrain.metrics import Metrics
from streamtrain.samples.batch import Ragged, SampleBatch
from streamtrain.samples.decoded import DecodedChunk
from streamtrain.samples.minibatch import Minibatch, Minibatcher
from streamtrain.samples.positions import LeavesLearned
from streamtrain.samples.schema import Schema
from streamtrain.sparse import stored_ids as stored_ids_module
from streamtrain.sparse.cold import AHEAD_STEPS
from streamtrain.sparse.dynamic import DynamicTable
from streamtrain.sparse.lifecycle_settings import CountAdmission, Decay, Expiry
from streamtrain.sparse.residents import COUNT_MAX, Residents, rows_within
from streamtrain.sparse.settings import TableSettings
from streamtrain.sparse.stored_ids import StoredIds
from streamtrain.sparse.turns import tickets_of
from streamtrain.sparse.unite import Uniter
from streamtrain.store import sweeps as sweeps_module
from streamtrain.store.applier import StoreStatus
from streamtrain.store.prefetch import Fetched, StorePrefetch
from streamtrain.store.progress import Progress
from streamtrain.store.store import Unused
from streamtrain.store.sweeps import Sweeps
from streamtrain.store.tier import Tier
from tests.reference_store import as_dict

LAYOUT = Layout.of(Schema.model_validate({"labels": ["y"], "slots": {"a": {"table": "t"}}}), {"t": 2})
RULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "admission": {"admission": CountAdmission(kind="count", threshold=2)},
    "decay": {"decay": Decay(every_steps=2, weights=0.9)},
    "age": {"expiry": Expiry(after_steps=6, sweep_steps=5)},
    "age, all at once": {"expiry": Expiry(after_steps=3, sweep_steps=1)},
    "age, admission": {
        "expiry": Expiry(after_steps=9, sweep_steps=12),
        "admission": CountAdmission(kind="count", threshold=2),
    },
    "norm, decay": {
        "expiry": Expiry(norm_min=0.6, norm_after_count=2, sweep_steps=7),
        "decay": Decay(every_steps=2, weights=0.8, slots=0.9),
    },
    "rule, age, admission, decay": {
        "expiry": Expiry(rule="tests.property.test_tiers:dropped", after_steps=30, sweep_steps=4),
        "admission": CountAdmission(kind="count", threshold=2),
        "decay": Decay(every_steps=3, weights=0.9),
    },
}
ROWS_MAX = 8
NO_FILTER = FilterRows(np.empty(0, np.uint64), np.empty((0, 1), np.uint8))


def dropped(
    weights: np.ndarray, slots: np.ndarray, counts: np.ndarray, last_steps: np.ndarray, step: int
) -> np.ndarray:
    """A user's rule that shows whether it got all rows of the share, in order, as they are at the step."""
    places = np.arange(len(weights)) + int(weights.view(np.uint32).sum() % 7) + step
    found: np.ndarray = (places % 3 == 0) & (slots[:, 0] > 0)
    return found


Record = list[int]
"""The ids of a record, one for each of its samples."""


def decoded(first: int, records: list[Record]) -> DecodedChunk:
    ids = np.array([id_ for record in records for id_ in record], np.uint64)
    n = len(ids)
    zeros, times = np.zeros((n, 1), np.float32), np.zeros(n, np.int64)
    batch = SampleBatch(
        n,
        {"a": Ragged(ids, np.arange(n + 1, dtype=np.int64))},
        zeros[:, :0],
        zeros,
        zeros[:, 0],
        times,
        times,
    )
    sizes = [len(record) for record in records]
    return DecodedChunk(
        "p",
        first,
        first + len(records),
        np.repeat(np.arange(first, first + len(records)), sizes),
        np.array([leaf for size in sizes for leaf in range(size)], np.int64),
        np.array([leaf == size - 1 for size in sizes for leaf in range(size)], np.bool_),
        batch,
        (),
    )


@dataclass
class Epoch:
    """What a cut says: the minibatches so far, where reading resumes, the rows, the filter, and what happened to ids."""

    minibatches: list[list[int]]
    place: tuple[int, int]
    rows: TableRows
    filter: FilterRows
    events: Mapping[str, int]

    def content(self) -> tuple[Any, ...]:
        values = dict(zip(self.filter.ids.tolist(), map(bytes, self.filter.values), strict=True))
        order = self.rows.ids.tolist(), self.rows.tombstones.tolist()
        events = {name: count for name, count in self.events.items() if count}
        return as_dict(self.rows), order, values, sorted(self.filter.tombstones.tolist()), events


class Learning:
    """The trainer's side: a table that learns minibatches. What comes out depends on every bit of the rows."""

    def __init__(self, table: TableSettings, log: list[Epoch]) -> None:
        self.table = DynamicTable("t", table, seed=3)
        self.minibatches: list[list[int]] = []
        self.place = (0, 0)
        for epoch in log:
            if self.table.admission is not None:
                self.table.admission.load(epoch.filter)
            self.minibatches, self.place = list(epoch.minibatches), epoch.place
        self.table.at(self.step)

    @property
    def step(self) -> int:
        return len(self.minibatches)

    def learn(self, ids: list[int], place: tuple[int, int]) -> None:
        step, self.place = self.step, place
        self.minibatches.append(ids)
        united = Uniter().unite(np.array(ids, np.uint64))
        vectors = np.empty((len(united.ids), 2), np.float32)
        self.table.begin(united, self.table.prepare(united), step, vectors)
        if step % 7 == 5:
            self.table.discard()
        else:
            assert self.table.learn(vectors * 3 + np.float32(0.1 * (step + 1)), step)
            self.table.keep()
        self.table.end(step)

    def cut(self) -> Epoch:
        admission = self.table.admission
        filter = NO_FILTER if admission is None else admission.cut() or NO_FILTER
        return Epoch(list(self.minibatches), self.place, self.table.cut(), filter, self.table.take_events())


class Store:
    """A store and what applies epochs to it, as slowly as the test wants."""

    def __init__(self, log: list[Epoch]) -> None:
        self.log, self.rows, self.status = log, dict[int, TableRows](), StoreStatus(applied_epoch=0)
        self.blocked, self._moved = False, asyncio.Event()

    @property
    def epoch(self) -> int:
        assert self.status.applied_epoch is not None
        return self.status.applied_epoch

    def apply(self) -> None:
        if self.epoch < len(self.log):
            rows = self.log[self.epoch].rows
            for id_ in rows.tombstones.tolist():
                self.rows.pop(id_, None)
            for i, id_ in enumerate(rows.ids.tolist()):
                self.rows[id_] = _taken(rows, np.array([i]))
            self.status = StoreStatus(applied_epoch=self.epoch + 1)
            self.blocked = False
            self._moved.set()
            self._moved = asyncio.Event()

    def lose(self, epochs: int) -> None:
        kept = max(0, self.epoch - epochs)
        self.rows, self.status = {}, StoreStatus(applied_epoch=0)
        while self.epoch < kept:
            self.apply()

    async def pull(self, table: str, ids: np.ndarray, epoch_min: int) -> tuple[np.ndarray, TableRows]:
        if self.epoch < epoch_min:
            raise StoreBehind(f"at {self.epoch}, not {epoch_min}")
        found = np.array([id_ in self.rows for id_ in ids.tolist()], np.bool_)
        parts = [self.rows[id_] for id_ in ids[found].tolist()]
        return found, _joined(parts)

    async def scan(
        self, table: str, tickets: tuple[int, int], unused: Unused | None, epoch_min: int
    ) -> TableRows:
        await asyncio.sleep(0)
        if self.epoch < epoch_min:
            raise StoreBehind(f"at {self.epoch}, not {epoch_min}")
        rows = _joined(
            [row for row in self.rows.values() if tickets[0] <= tickets_of(row.ids)[0] < tickets[1]]
        )
        return rows if unused is None else _taken(rows, np.flatnonzero(unused.among(rows.last_steps)))

    async def repair(self, epoch: int) -> int:
        while self.epoch < epoch:
            self.apply()
        return self.epoch

    async def beyond(self, epoch: int) -> None:
        while self.epoch <= epoch:
            self.blocked = True
            await self._moved.wait()
        self.blocked = False


def _taken(rows: TableRows, index: np.ndarray) -> TableRows:
    columns = (rows.ids, rows.weights, rows.slots, rows.counts, rows.last_steps)
    return TableRows(*(column[index] for column in columns))


def _joined(parts: list[TableRows]) -> TableRows:
    columns = ("ids", "weights", "slots", "counts", "last_steps")
    return (
        TableRows(*(np.concatenate([getattr(part, name) for part in parts]) for name in columns))
        if parts
        else TableRows.empty(2, 2)
    )


@dataclass
class World:
    """One daemon after the other over one log."""

    table: TableSettings
    chunks: list[list[Record]]
    batch_size: int = 2
    log: list[Epoch] = field(default_factory=list)
    evicted: int = 0
    parts: int = 0
    refills: int = 0
    lingered: int = 0

    def start(self, store: Store) -> None:
        self.store = store
        self.learning = Learning(self.table, self.log)
        # A chunk of which a part is committed is read again from there, inside a record if need be.
        self.fed, leaf = self.learning.place
        self.learned = LeavesLearned({"p": leaf} if leaf else {})
        self.minibatcher = Minibatcher(self.batch_size, math.inf)
        self.progress = Progress(len(self.log), self.learning.step)
        # So small that some new ids are asked for all the same.
        stored = StoredIds("t", 64, self._refill)
        self._refill(stored)
        tier = Tier("t", ROWS_MAX, stored, store, self.progress, Metrics())
        applier: Any = store
        self.prefetch = StorePrefetch(applier, applier, LAYOUT, {}, self.progress, Metrics(), {"t": tier})
        self.sweeps: Sweeps | None = None
        if self.table.expiry is not None:
            tables = {"t": self.table.expiry}
            self.sweeps = Sweeps(applier, applier, self.progress, tables, self.learning.step, Metrics())
            self.sweeping = asyncio.create_task(self.sweeps.run())
        self.whole, self.offered = 0, -1
        self.queue: deque[tuple[DecodedChunk, Fetched]] = deque()
        self.feeding: asyncio.Task[None] | None = None
        self.taken, self.waiting = 0, deque[int]()

    def _refill(self, stored: StoredIds) -> None:
        """As from a base: ids that expired are in it no more."""
        held: dict[int, None] = {}
        for epoch in self.log:
            for id_ in epoch.rows.tombstones.tolist():
                held.pop(id_, None)
            held |= dict.fromkeys(epoch.rows.ids.tolist())
        stored.add(np.array([*held], np.uint64))
        stored.complete = True
        self.refills += 1

    @property
    def records(self) -> list[Record]:
        return [record for chunk in self.chunks for record in chunk]

    async def feed(self) -> None:
        if self.feeding is None and self.fed < len(self.records):
            self.feeding = asyncio.create_task(self._feed())
        await self.settle()

    async def _feed(self) -> None:
        ends = np.cumsum([len(chunk) for chunk in self.chunks])
        end = int(ends[np.searchsorted(ends, self.fed, side="right")])
        chunk = self.learned.leave_out(decoded(self.fed, self.records[self.fed : end]))
        for part in await self.prefetch.fitting(chunk):
            fetched = await self.prefetch.rows_for(part.batch)
            self.fed = part.next
            self.parts += 1
            self.queue.append((part, fetched))

    async def settle(self) -> None:
        """Until what is being fed is there, or waits for the store."""
        while self.feeding is not None:
            if self.feeding.done():
                await self.feeding
                self.feeding = None
            elif self.store.blocked:
                return
            else:
                await asyncio.sleep(0)

    async def train(self) -> None:
        """Learns a minibatch if that is full, or takes a chunk in."""
        await self._offer_share()
        if (minibatch := self.minibatcher.take(0.0)) is not None:
            self._learn(minibatch)
        elif self.queue:
            part, fetched = self.queue.popleft()
            for ids in fetched.evicted.values():
                assert self.learning.table.evict(ids) <= len(ids)
                self.evicted += len(ids)
            self.whole = fetched.whole
            for rows in fetched.rows.values():
                self.learning.table.insert_missing(self.learning.table.without_expired(rows, self.whole))
            before = self.minibatcher.chunks
            self.minibatcher.add(part, 0.0)
            self.taken += 1
            if self.minibatcher.chunks > before:
                self.waiting.append(self.taken)
        assert len(self.learning.table) <= ROWS_MAX

    async def linger(self) -> None:
        """The samples that wait have waited for long enough."""
        await self._offer_share()
        if (minibatch := self.minibatcher.flush()) is not None:
            self._learn(minibatch)

    def _learn(self, minibatch: Minibatch) -> None:
        assert len(minibatch.spans) == 1 and minibatch.spans[0].begin == self.learning.place
        self.learning.learn(minibatch.batch.ids["a"].values.tolist(), minibatch.spans[0].end)
        assert len(self.learning.table) <= ROWS_MAX

    async def _offer_share(self) -> None:
        if self.sweeps is None or self.offered == self.learning.step:
            return
        for _ in range(1000):
            if (share := self.sweeps.take(self.learning.step, 0.0)) is not None:
                oldest = min(share.whole, self.whole)
                self.learning.table.offer(share.rows["t"], share.step, share.whole, oldest)
                self.offered = share.step
                return
            await asyncio.sleep(0)
        raise AssertionError("a share that never comes")

    def cut(self) -> None:
        if not self.log or len(self.log[-1].minibatches) < self.learning.step:
            self.log.append(self.learning.cut())
            while len(self.waiting) > self.minibatcher.chunks:
                self.waiting.popleft()
            batch = self.waiting[0] - 1 if self.waiting else self.taken
            self.progress.cut(len(self.log), batch, self.learning.step)

    async def crash(self) -> None:
        if self.feeding is not None:
            self.feeding.cancel()
            await asyncio.gather(self.feeding, return_exceptions=True)
        await self._stop_sweeps()
        while self.store.epoch < len(self.log):
            self.store.apply()
        self.store.blocked = False
        self.start(self.store)

    async def _stop_sweeps(self) -> None:
        if self.sweeps is not None:
            self.sweeping.cancel()
            await asyncio.gather(self.sweeping, return_exceptions=True)

    async def run(self, actions: list[str]) -> None:
        self.start(Store(self.log))
        for action in actions:
            await self.act(action)
        self.lingered = 0
        end = len(self.records), 0
        while self.learning.place != end:
            before = self.learning.step, self.fed, self.store.epoch
            for action in ["feed", *["train"] * 12, "cut", "apply"]:
                await self.act(action)
            if before == (self.learning.step, self.fed, self.store.epoch):
                assert self.minibatcher.pending, "the feed waits for what never comes"
                self.lingered += self.fed < len(self.records)
                await self.linger()
        self.cut()
        await self._stop_sweeps()

    async def act(self, action: str) -> None:
        match action:
            case "feed":
                await self.feed()
            case "train":
                await self.train()
            case "linger":
                await self.linger()
            case "cut":
                self.cut()
            case "apply":
                self.store.apply()
            case "lose":
                self.store.lose(2)
            case "crash":
                await self.crash()
        await self.settle()

    def expected(self) -> list[Epoch]:
        """The same minibatches in a table that holds all rows, cut at the same places."""
        learning, log = Learning(self.table.model_copy(update={"memory_bytes_max": None}), []), []
        for epoch in self.log:
            for ids in epoch.minibatches[learning.step :]:
                learning.learn(ids, epoch.place)
            log.append(learning.cut())
        return log

    def check(self) -> None:
        """Every sample was learned once, in order, and every epoch is what it would be without a bound."""
        learned = [id_ for minibatch in self.log[-1].minibatches for id_ in minibatch]
        assert learned == [id_ for record in self.records for id_ in record]
        assert [epoch.content() for epoch in self.log] == [epoch.content() for epoch in self.expected()]


ACTIONS = ["feed", "train", "train", "cut", "apply"]
RECORDS = st.lists(st.integers(1, 30), min_size=1, max_size=3)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rule=st.sampled_from(sorted(RULES)),
    # Some chunks name more ids than memory holds.
    chunks=st.lists(st.lists(RECORDS, min_size=1, max_size=8), min_size=3, max_size=15),
    actions=st.lists(st.sampled_from([*ACTIONS * 4, "linger", "lose", "crash"]), max_size=120),
    ahead=st.sampled_from([1, 4, AHEAD_STEPS]),
    batch_size=st.sampled_from([1, 2, 3, 4, 20]),
    crowded=st.sampled_from([0.02, 0.1, 0.5]),
)
def test_the_log_is_that_of_a_table_which_holds_all_rows(
    rule: str, chunks: list[list[Record]], actions: list[str], ahead: int, batch_size: int, crowded: float
) -> None:
    table = TableSettings(dim=2, memory_bytes_max=1 << 20, rows_max=100, **RULES[rule])
    world = World(table, chunks, batch_size)
    with (
        patch.object(sweeps_module, "AHEAD_STEPS", ahead),
        patch.object(stored_ids_module, "CROWDED", crowded),
    ):
        asyncio.run(world.run(actions))
    world.check()
    # What waits for its minibatch, what is in memory because of it, and the next part have room together.
    assert not world.lingered or batch_size > 4


def test_the_worlds_of_these_tests_do_evict_rows_split_chunks_and_bring_rows_back() -> None:
    random = np.random.default_rng(0)
    chunks = [[random.integers(1, 30, 2).tolist() for _ in range(6)] for _ in range(30)]
    world = World(TableSettings(dim=2, memory_bytes_max=1 << 20, rows_max=100), chunks)
    with patch.object(stored_ids_module, "CROWDED", 0.02):
        asyncio.run(world.run(random.choice(ACTIONS, 500).tolist()))
    assert world.evicted > 100 and world.parts > 2 * len(chunks) and world.refills > 1
    world.check()


def test_a_minibatch_that_names_more_ids_than_memory_holds_is_learned_in_smaller_ones() -> None:
    world = World(
        TableSettings(dim=2, memory_bytes_max=1 << 20, rows_max=100), [[[i] for i in range(60)]], 20
    )
    asyncio.run(world.run([]))
    assert world.lingered and all(len(minibatch) < 20 for minibatch in world.log[-1].minibatches)
    world.check()


def test_a_record_that_alone_names_more_ids_than_memory_holds_is_refused_in_words() -> None:
    chunks = [[[1], list(range(20)), [2]]]
    world = World(TableSettings(dim=2, memory_bytes_max=1 << 20, rows_max=100), chunks)
    words = (
        r"record p offset 1 names 20 ids with its 20 samples, and memory_bytes_max holds 8 rows.*tables\.t\."
    )
    with pytest.raises(TableFull, match=words):
        asyncio.run(world.run([]))


@given(
    named=st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=4), max_size=30),
    wanted=st.integers(1, 6),
)
def test_gclock_lets_go_as_its_slow_twin_does(named: list[list[int]], wanted: int) -> None:
    residents, counters, last, ring = (
        Residents("t", 64),
        dict[int, int](),
        dict[int, int](),
        list[int | None](),
    )
    hand = 0
    free: list[int] = []
    for number, ids in enumerate(named, 1):
        new, here = residents.name(np.array(ids, np.uint64), number)
        assert new.tolist() == sorted(set(ids) - set(counters))
        assert here == len(set(ids) & set(counters))
        for id_ in set(ids) & set(counters):
            counters[id_] = min(counters[id_] + 1, COUNT_MAX)
            last[id_] = number
        residents.add(new, number)
        for id_ in new.tolist():
            counters[id_], last[id_] = 0, number
            if free:
                ring[free.pop()] = id_
            else:
                ring.append(id_)
        if number % 3:
            continue
        gone: list[int] = []
        for _ in range(len(ring) * (COUNT_MAX + 1)):
            if len(gone) == wanted:
                break
            place = hand if hand < len(ring) else 0
            hand = place + 1
            id_ = ring[place]
            if id_ is None or last[id_] > number - 1:
                continue
            if counters[id_]:
                counters[id_] -= 1
            else:
                gone.append(id_)
                ring[place] = None
                del counters[id_]
                free.append(place)
        assert residents.evict(wanted, number - 1).tolist() == gone
        assert len(residents) == len(counters)


def test_nothing_compiles_when_the_first_chunk_comes() -> None:
    code = """
import numpy as np
from streamtrain.sparse import residents
from streamtrain.sparse.bank import make_table
from streamtrain.sparse.settings import TableSettings
make_table("t", TableSettings(dim=2, memory_bytes_max=1 << 20), 0).rehearse()
before = [len(kernel.signatures) for kernel in (residents.count, residents.sweep)]
made = residents.Residents("t", 100)
ids = np.frombuffer(np.arange(9, dtype=np.uint64).tobytes(), np.uint64)
made.add(made.name(ids, 1)[0], 1)
made.name(ids, 2)
assert len(made.evict(3, 2)) == 3
assert before == [1, 1] == [len(kernel.signatures) for kernel in (residents.count, residents.sweep)]
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


@given(st.integers(1 << 18, 1 << 34), st.integers(1, 300))
def test_as_many_rows_fit_as_their_memory_says(memory: int, dim: int) -> None:
    table = TableSettings(dim=dim, rows_max=2_000_000_000)
    rows = rows_within("t", table, memory)

    def taken(count: int) -> int:
        slots = 1024
        while slots * 65 // 100 < count:
            slots *= 2
        return count * (4 * (2 * dim + 2) + 33) + 16 * slots + memory // 16

    assert taken(rows) <= memory < taken(rows + 1)
