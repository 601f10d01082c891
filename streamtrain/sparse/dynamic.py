"""The dynamic table: a row for each id that is admitted, until it expires."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from streamtrain.errors import TableFull
from streamtrain.log.record import TableRows
from streamtrain.sparse.admission import Admission, make_admission
from streamtrain.sparse.cold import ColdRows
from streamtrain.sparse.expiry import expired, rule_of
from streamtrain.sparse.over_rows import OverRows
from streamtrain.sparse.residents import Residents
from streamtrain.sparse.settings import TableSettings
from streamtrain.sparse.table import EmbeddingTable
from streamtrain.sparse.unite import United

__all__ = ["DynamicTable"]

NO_IDS = np.empty(0, np.uint64)
NO_ROWS = np.empty(0, np.int32)
NO_COUNTS = np.empty(0, np.uint32)


class DynamicTable(OverRows):
    """The kind of table that is an index of ids over rows of their own; see `TableKind`.

    In a step, rows are found, absent ids are admitted or not, and rows learn; then the step ends, and with it filters age
    and rows expire. A step that is taken back ends too: its number has passed all the same.

    Attributes:
      admission: which ids get one; None: all.
      resident: see `TableKind`: rows that may expire have to be there; and whether an id has a row is asked for each of
        the many that have none, which a store could not answer in time unless memory has to be bounded.
    """

    def __init__(self, name: str, settings: TableSettings, seed: int) -> None:
        """Args: name: the table's; settings: of it; seed: the model's. Raises: ConfigError."""
        self.admission: Admission | None = make_admission(settings.admission, seed, name)
        rows = EmbeddingTable(
            name,
            settings.dim,
            init=settings.init,
            seed=seed,
            rows_max=settings.rows_max,
            optimizer=settings.optimizer,
            unadmitted=None if self.admission is None else settings.unadmitted,
            decay=settings.decay,
        )
        super().__init__(rows, settings.dim)
        self._expiry = settings.expiry
        self._bounded = settings.memory_bytes_max is not None
        self.resident = not self._bounded and (self.admission is not None or settings.expiry is not None)
        self._rule = None if settings.expiry is None else rule_of(settings.expiry, name)
        # A row that was inserted and has not learned is no change: where nothing looks at rows by themselves it may stay.
        self._tidy = self.admission is not None or settings.expiry is not None or settings.decay is not None
        # Of the step in flight.
        self._step_rows, self._occurrences = NO_ROWS, NO_COUNTS
        self._inserted, self._refused = NO_IDS, 0
        self._events: Counter[str] = Counter()
        self._next = 0
        # Made where rows are in a store and may expire there.
        self._cold: ColdRows | None = None
        self._rows_max = settings.rows_max

    @property
    def memory_bytes(self) -> int:
        filter_bytes = 0 if self.admission is None else self.admission.memory_bytes
        return self.rows.memory_bytes + filter_bytes + (0 if self._cold is None else self._cold.memory_bytes)

    def prepare(self, united: United) -> None:
        """Nothing: rows are found by the ids themselves."""

    def begin(self, united: United, prepared: None, step: int, vectors: NDArray[np.float32]) -> None:
        self._occurrences = united.occurrences
        self.at(step)
        if self._tidy:
            self._step_rows = self._find_or_admit(united, step)
        else:
            self._step_rows = self.rows.find_or_insert(united.ids)
        self.rows.gather(self._step_rows, vectors)

    def _find_or_admit(self, united: United, step: int) -> NDArray[np.int32]:
        rows = self.rows.find(united.ids)
        absent = np.flatnonzero(rows < 0)
        if self.admission is not None:
            occurrences = united.occurrences[absent]
            absent = absent[self.admission.admit(united.ids[absent], occurrences, step)]
        self._inserted = united.ids[absent]
        try:
            rows[absent] = self.rows.find_or_insert(self._inserted)
        except TableFull:
            self.discard()
            raise
        self._refused = int(np.count_nonzero(rows < 0))
        return rows

    def learn(self, gradients: NDArray[np.float32], step: int) -> bool:
        return self.rows.learn(self._step_rows, gradients, self._occurrences, step)

    def keep(self) -> None:
        self.rows.keep_learned(self._step_rows)
        if self.admission is not None:
            self.admission.keep()
            self._events["admitted"] += len(self._inserted)
            self._events["refused"] += self._refused

    def undo(self) -> None:
        self.rows.undo_learned(self._step_rows)
        self.discard()

    def discard(self) -> None:
        """Rows that were inserted stay where nothing looks at them: at their initial state, as they would start again."""
        if self._tidy:
            self.rows.withdraw(self._inserted)
        if self.admission is not None:
            self.admission.undo()

    def at(self, step: int) -> None:
        self._next = step
        self.rows.at(step)

    def end(self, step: int) -> None:
        self.at(step + 1)
        if self.admission is not None:
            self.admission.end(step)
        if self._expiry is not None:
            rows = self.rows.in_turn(step, self._expiry.sweep_steps)
            if self._cold is not None:
                rows = self._cold.join(rows, step)
            self.rows.fade(rows, step)
            gone, reasons = expired(self._expiry, self._rule, rows, step)
            self.rows.compact(self.rows.bury(rows.ids[gone]))
            if self._cold is not None:
                self._cold.bury(rows.ids[gone], step)
            self._events.update({f"expired_{reason}": count for reason, count in reasons.items()})

    def take_events(self) -> Mapping[str, int]:
        events, self._events = dict(self._events), Counter()
        return events

    def lookup(self, ids: NDArray[np.uint64]) -> NDArray[np.float32]:
        return self.rows.lookup(ids)

    def rehearse(self) -> None:
        self.rows.rehearse()
        if self._bounded:
            Residents.rehearse()

    def evict(self, ids: NDArray[np.uint64]) -> int:
        """Lets go of rows; see `EmbeddingTable.evict`."""
        if self._cold is not None:
            self._cold.leave(self.rows.copies(self._cold.soon(ids, self._next)), self._next)
        return self.rows.evict(ids)

    def offer(self, rows: TableRows, step: int, whole: int, oldest: int) -> None:
        """Takes the store's rows that expiry looks at after `step`, the next one; see `ColdRows.offer`.

        The first call says that rows are in a store: from then on each step has to be preceded by one.
        """
        assert self._expiry is not None, "nothing else looks at rows by itself"
        if self._cold is None:
            self._cold = ColdRows(self.name, self._rows_max, self._expiry.sweep_steps)
        self._cold.offer(rows, step, whole, oldest)

    def without_expired(self, values: TableRows, whole: int) -> TableRows:
        """Of pulled rows those that have not expired since; see `ColdRows.without_expired`."""
        return values if self._cold is None else self._cold.without_expired(values, whole)
