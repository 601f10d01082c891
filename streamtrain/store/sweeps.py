"""Brings the rows that expiry looks at, and that are in the store, before their step."""

from __future__ import annotations

import asyncio
import queue
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from streamtrain.log.record import TableRows
from streamtrain.metrics import Metrics
from streamtrain.sparse.cold import AHEAD_STEPS, taken
from streamtrain.sparse.lifecycle_settings import Expiry
from streamtrain.sparse.turns import tickets_in_turn, until_turn
from streamtrain.store.applier import StoreApplier
from streamtrain.store.patience import Patience
from streamtrain.store.progress import Progress
from streamtrain.store.store import Store, Unused

__all__ = ["Share", "Sweeps"]

ROWS_AHEAD_MAX = 1 << 16
"""No share is fetched while shares with more rows wait for their steps."""


@dataclass(frozen=True, slots=True)
class Share:
    """Rows of the store that expiry looks at after a step.

    Attributes:
      step: its number.
      rows: by table; those that do not expire if they are as they were may be missing.
      whole: the store had all steps before this one when they were read.
    """

    step: int
    rows: Mapping[str, TableRows]
    whole: int


class Sweeps:
    """Fetches shares of the store's rows for the steps to come, in their order. `take` is for the trainer's thread.

    How far ahead is bounded, by `AHEAD_STEPS`, the steps of a sweep, and ROWS_AHEAD_MAX. A store that does not answer is waited for.

    Args:
      store: has every epoch up to that of `progress`.
      applier: says which epochs the store has, and repairs it.
      progress: what the trainer has learned.
      tables: by name, the expiry of those whose rows may be in the store alone.
      step: the next step.
      metrics: counts.

    Attributes:
      tables: as given.
    """

    def __init__(
        self,
        store: Store,
        applier: StoreApplier,
        progress: Progress,
        tables: Mapping[str, Expiry],
        step: int,
        metrics: Metrics,
    ) -> None:
        self.tables = tables
        # No two turns of an id lie in it: what happens to a row before its next turn then says what that one has to see.
        self._ahead = min(AHEAD_STEPS, *(expiry.sweep_steps for expiry in tables.values()))
        self._store, self._applier, self._progress, self._metrics = store, applier, progress, metrics
        self._patience = Patience(applier, progress, metrics)
        self._queue: queue.SimpleQueue[Share] = queue.SimpleQueue()
        self._loop, self._wanted = asyncio.get_running_loop(), asyncio.Event()
        # The next step to take, written by the trainer's thread alone; and the next to fetch.
        self._taking, self._fetching = step, step
        # Of shares that were fetched and not taken yet, step and number of rows.
        self._waiting: deque[tuple[int, int]] = deque()

    def take(self, step: int, timeout_s: float) -> Share | None:
        """The share of `step`, which follows the one of the call before; None where it did not come in time: ask again."""
        self._taking = step
        try:
            share = self._queue.get(timeout=timeout_s) if timeout_s else self._queue.get_nowait()
        except queue.Empty:
            share = None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wanted.set)
        assert share is None or share.step == step, f"step {step} got the share of {share.step}"
        return share

    async def run(self) -> None:
        """Fetches until it is cancelled. Raises: as `Store.scan`, but for what passes."""
        while True:
            self._wanted.clear()
            # Not one by one as steps are taken: a read of several shares costs little more than that of one.
            if (end := self._end()) - self._fetching >= max(1, len(self._waiting)):
                for share in await self._fetch(self._fetching, end):
                    self._waiting.append((share.step, sum(len(rows.ids) for rows in share.rows.values())))
                    self._queue.put(share)
                self._fetching = end
            else:
                await self._wanted.wait()

    def _end(self) -> int:
        """Up to which step shares are fetched now."""
        while self._waiting and self._waiting[0][0] < self._taking:
            self._waiting.popleft()
        rows, steps = sum(rows for _, rows in self._waiting), len(self._waiting)
        if not steps:
            return self._fetching + 1
        # As many as would fill what is left, if they are like those that wait.
        room = (ROWS_AHEAD_MAX - rows) * steps // max(rows, 1)
        return min(self._taking + self._ahead, self._fetching + max(0, room))

    async def _fetch(self, first: int, end: int) -> list[Share]:
        """The shares of steps first <= step < end."""
        self._progress.applied(self._applier.status.applied_epoch or 0)
        whole = self._progress.step
        by_table = {name: await self._read(name, first, end) for name in self.tables}
        return [
            Share(step, {name: shares[step - first] for name, shares in by_table.items()}, whole)
            for step in range(first, end)
        ]

    async def _read(self, table: str, first: int, end: int) -> list[TableRows]:
        expiry = self.tables[table]
        shares: list[TableRows] = []
        while first + len(shares) < end:
            start = first + len(shares)
            # The tickets of steps are neighbours until the last share, behind which the first follows.
            stop = min(end, start + expiry.sweep_steps - start % expiry.sweep_steps)
            tickets = (
                tickets_in_turn(start, expiry.sweep_steps)[0],
                tickets_in_turn(stop - 1, expiry.sweep_steps)[1],
            )
            scan = partial(self._store.scan, table, tickets, _unused(expiry, stop - 1))
            rows = await self._patience.insist(scan)
            self._metrics.tier_swept.labels(table).inc(len(rows.ids))
            turns = until_turn(rows.ids, start, expiry.sweep_steps)
            shares += [taken(rows, turns == turn) for turn in range(stop - start)]
        return shares


def _unused(expiry: Expiry, step: int) -> Unused | None:
    """Which rows alone can expire by `step`, where that can be said without looking at what they hold."""
    if expiry.after_steps is None or expiry.norm_min is not None or expiry.rule is not None:
        return None
    return Unused(step & 0xFFFFFFFF, expiry.after_steps)
