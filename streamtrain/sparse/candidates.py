"""Admission by exact counts: every id without a row is remembered with how often it came."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from streamtrain.errors import ConfigError
from streamtrain.log.record import FilterRows
from streamtrain.sparse.index import Index
from streamtrain.sparse.lifecycle_settings import CountAdmission
from streamtrain.sparse.memory import reserve
from streamtrain.sparse.turns import TICKETS, rows_between, rows_in_turn, share_of
from streamtrain.sparse.unite import distinct

__all__ = ["ExactAdmission", "TouchedIds"]

COUNT_MAX = 2**32 - 1
GOLDEN = 0x9E3779B9  # 2^32 / golden ratio, odd
# So that one makes room that lasts.
SHARES_MAX = 32
COUNT_BYTES = 4
NO_IDS = np.empty(0, np.uint64)


class ExactAdmission:
    """See `Admission`.

    An id that has come c times and occurs o times now is admitted where c + o >= threshold, and forgotten; else it is
    remembered with c + o, up to 2^32 - 1. Where m new ids of a minibatch find no room, counts are halved, and those at 0
    forgotten, a share of the n ids after the other until they do: one share of S = max(1, min(32, floor(n / 2 m))), then as
    many again as were halved, and so on. An id is in share floor(t S / 2^32), t its ticket (sparse/turns.py). The first share
    is the one of t = 2654435769 * step mod 2^32, so that all have their turn evenly (Knuth, TAOCP 3, section 6.4, theorem S). If nothing is left to forget, the first `ids_max` of the new ids are counted
    and the others not.
    """

    def __init__(self, settings: CountAdmission, table: str) -> None:
        """Args: settings: of the rule; table: its name. Raises: ConfigError."""
        self._name = f"tables.{table}.admission"
        self._threshold, self._ids_max = settings.threshold, settings.ids_max
        self._halve_every = settings.halve_every_steps
        self._counts: NDArray[np.uint32] = reserve((settings.ids_max,), np.uint32, self._name)
        self._index = Index(self._name, settings.ids_max)
        self._touched = TouchedIds()
        # What `undo` puts back: ids with what they counted before the step, 0 where they were not there.
        self._journal: list[tuple[NDArray[np.uint64], NDArray[np.uint32]]] = []
        self._halvings, self._halvings_before = 0, 0
        rows_in_turn(self._index, 0, 1)  # Compiles its kernel here, not when samples wait.

    @property
    def memory_bytes(self) -> int:
        return self._index.memory_bytes + COUNT_BYTES * self._index.rows_high + self._touched.memory_bytes

    def admit(self, ids: NDArray[np.uint64], occurrences: NDArray[np.uint32], step: int) -> NDArray[np.bool_]:
        self._journal, self._halvings_before = [], self._halvings
        shares = halved = 0
        while True:
            before = self._get(ids)
            totals = np.minimum(before.astype(np.uint64) + occurrences, COUNT_MAX).astype(np.uint32)
            admitted: NDArray[np.bool_] = totals >= self._threshold
            room = self._ids_max - len(self._index) + np.count_nonzero(admitted & (before > 0))
            lacking = np.count_nonzero(~admitted & (before == 0)) - room
            if lacking <= 0 or not len(self._index):
                break
            shares = shares or max(1, min(SHARES_MAX, len(self._index) // (2 * int(lacking))))
            first = share_in_turn(shares, step)
            for share in range(halved, max(1, 2 * halved)):
                self._halve(rows_between(self._index, *share_of(TICKETS, first + share, shares)))
            halved = max(1, 2 * halved)
            self._halvings += 1
        counted = ~admitted
        if lacking > 0:
            counted &= np.cumsum(counted) <= room
        self._write(ids[admitted & (before > 0)], None)
        self._write(ids[counted], totals[counted])
        return admitted

    def keep(self) -> None:
        for ids, _ in self._journal:
            self._touched.add(ids)
        self._journal = []

    def undo(self) -> None:
        for ids, counts in reversed(self._journal):
            self._erase(ids[counts == 0])
            self._set(ids[counts > 0], counts[counts > 0])
        self._journal, self._halvings = [], self._halvings_before

    def end(self, step: int) -> None:
        if self._halve_every is not None:
            self._journal = []
            self._halve(rows_in_turn(self._index, step, self._halve_every))
            self.keep()

    def cut(self) -> FilterRows:
        ids = self._touched.take()
        rows = self._index.find(ids)
        there = rows >= 0
        values = self._counts[rows[there]].astype("<u4").view(np.uint8).reshape(-1, COUNT_BYTES)
        return FilterRows(ids[there], values, ids[~there])

    def load(self, values: FilterRows) -> None:
        if values.values.shape[1] != COUNT_BYTES or len(values.ids) > self._ids_max:
            raise ConfigError(
                f"{self._name}: the log holds a filter of another rule, or more than ids_max = {self._ids_max} ids; set "
                "kind and ids_max back"
            )
        # Those that are gone first: only then there is room for the others, as there was when they were counted.
        self._erase(values.tombstones)
        counts = np.ascontiguousarray(values.values).view("<u4").reshape(-1)
        self._set(np.array(values.ids, np.uint64), counts.astype(np.uint32))

    def state(self) -> Mapping[str, np.ndarray]:
        return {}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        assert not state

    def gauges(self) -> Mapping[str, float]:
        return {
            "candidates": len(self._index),
            "fill": len(self._index) / self._ids_max,
            "halvings": self._halvings,
        }

    def _get(self, ids: NDArray[np.uint64]) -> NDArray[np.uint32]:
        rows = self._index.find(ids)
        return np.where(rows >= 0, self._counts[np.maximum(rows, 0)], np.uint32(0))

    def _halve(self, rows: NDArray[np.int32]) -> None:
        ids, counts = self._index.row_ids[rows], self._counts[rows] >> np.uint32(1)
        self._write(ids[counts == 0], None)
        self._write(ids[counts > 0], counts[counts > 0])

    def _write(self, ids: NDArray[np.uint64], counts: NDArray[np.uint32] | None) -> None:
        """Sets counts, or forgets the ids; notes what they were."""
        self._journal.append((ids, self._get(ids)))
        if counts is None:
            self._erase(ids)
        else:
            self._set(ids, counts)

    def _set(self, ids: NDArray[np.uint64], counts: NDArray[np.uint32]) -> None:
        rows, fresh = np.empty(len(ids), np.int32), np.empty(len(ids), np.bool_)
        self._index.find_or_insert(ids, rows, fresh)
        self._counts[rows] = counts

    def _erase(self, ids: NDArray[np.uint64]) -> None:
        self._index.erase(ids)


def share_in_turn(shares: int, step: int) -> int:
    """Which of the shares of all tickets is the first to be halved at `step`."""
    return step * GOLDEN % TICKETS * shares // TICKETS


class TouchedIds:
    """Which ids were touched since the last cut; takes 8 bytes for each, a few times over."""

    def __init__(self) -> None:
        self._united, self._new, self._waiting = NO_IDS, [NO_IDS], 0

    @property
    def memory_bytes(self) -> int:
        return 8 * (len(self._united) + self._waiting)

    def add(self, ids: NDArray[np.uint64]) -> None:
        """Notes ids (`[N]` uint64, not changed by the caller afterwards)."""
        if len(ids):
            self._new.append(ids)
            self._waiting += len(ids)
        # Uniting costs a sort of everything, so it waits until as much is new as is old.
        if self._waiting > max(1_000_000, len(self._united)):
            self._unite()

    def take(self) -> NDArray[np.uint64]:
        """The ids, ascending; forgets them."""
        self._unite()
        ids, self._united = self._united, NO_IDS
        return ids

    def _unite(self) -> None:
        self._united = distinct(np.concatenate([self._united, *self._new]))
        self._new, self._waiting = [NO_IDS], 0
