"""Brings a learner to the head of a log, and keeps it there: recovery at a start, and following as a standby."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator

from streamtrain.errors import EpochMissing, LogError
from streamtrain.log.headstart import Headstart
from streamtrain.log.lineage import losses_of
from streamtrain.log.reader import LogReader
from streamtrain.log.record import EpochRecord
from streamtrain.log.recovery import ahead, restored
from streamtrain.training.learner import Learner

__all__ = ["Restorer", "Stopped"]

logger = logging.getLogger(__name__)


class Stopped(Exception):
    """The daemon is to stop before it has recovered."""


class Restorer:
    """Follows one log with one learner. One thread at a time may use it; while it is used, nobody else has the learner.

    Args:
      learner: warm; holds whatever it holds.
      log: only read.
      sequential: see `Source.sequential`.
      rows: False where rows come from a store on demand: then the newest record says it all, unless a table's admission or
        expiry needs what the records before it hold.
      stopped: asked before each record.
      headstart: has begun to read the newest base, for who wants all rows.
    """

    def __init__(
        self,
        learner: Learner,
        log: LogReader,
        *,
        sequential: bool,
        rows: bool,
        stopped: Callable[[], bool] = lambda: False,
        headstart: Headstart | None = None,
    ) -> None:
        self._learner, self._log, self._stopped, self._headstart = learner, log, stopped, headstart
        self._sequential, self._rows = sequential, rows
        self._every_record = rows or learner.sparse.needs_history
        self._last: EpochRecord | None = None
        self._digest = ""

    @property
    def epoch(self) -> int:
        """The newest epoch that the learner has; -1 for none. From any thread."""
        last = self._last
        return -1 if last is None else last.epoch

    def catch_up(self) -> EpochRecord | None:
        """Applies what is new in the log; begins anew where its history is not the one that was followed.

        Where that happens: epochs were collected before they were read here, or the newest one was lost with the power
        and learned again by another. A rollback is an epoch like any other.

        Returns:
          The newest record without its arrays; None of an empty log.

        Raises:
          Stopped: it is to stop; call it again and it begins anew.
          CorruptRecord, LogError: of a file on the way. As above.
        """
        head = self._log.head()
        if head is None:
            self._last = None
            return None
        if (last := self._last) is not None and not self._follow(last, head):
            logger.info("epoch %d is not followed by what is in the log now: beginning anew", last.epoch)
            self._last = None
        if self._last is None:
            self._begin()
        return self._last

    def _follow(self, last: EpochRecord, head: int) -> bool:
        """Applies the records up to `head`; False where they do not follow."""
        if head <= last.epoch:
            return head == last.epoch and self._log.digest(head) == self._digest
        try:
            for epoch in range(last.epoch + 1 if self._every_record else head, head + 1):
                record = self._log.read(epoch)
                if self._every_record and record.previous != self._digest:
                    return False
                # Whatever stops it midway leaves no half of a record behind that anyone takes for a whole one.
                self._last = None
                self._note(
                    self._learner.advance(
                        self._checked([record]), sequential=self._sequential, rows=self._rows
                    )
                )
        except EpochMissing:
            return False
        return True

    def _begin(self) -> None:
        def begin(records: Iterator[EpochRecord]) -> None:
            if not self._every_record:
                records = iter([self._newest()])
            self._note(
                self._learner.restore(
                    ahead(self._checked(records)),
                    sequential=self._sequential,
                    rows=self._rows,
                    expected=self._expected(),
                )
            )

        # What is noted may be collected as well as what is read: either way there is a newer base.
        restored(self._log, begin, headstart=self._headstart)

    def _expected(self) -> dict[str, int]:
        """By table that will be loaded, the rows of the newest base."""
        try:
            tables = self._log.describe_base(max(self._log.bases(), default=-1)).tables
        except LogError:
            return {}  # there is none, or reading it will tell
        resident = self._learner.sparse.resident
        return {name: len(rows.ids) for name, rows in tables.items() if self._rows or name in resident}

    def _newest(self) -> EpochRecord:
        """The record of the head, or the base that stands for it."""
        head = self._log.head() or 0
        try:
            return self._log.read(head)
        except EpochMissing:
            return self._log.read_base(head)

    def _checked(self, records: Iterable[EpochRecord]) -> Iterator[EpochRecord]:
        """The records. When the daemon is stopped meanwhile it raises, so that the thread that reads them ends."""
        for record in records:
            if self._stopped():
                raise Stopped
            yield record

    def _note(self, record: EpochRecord) -> None:
        # A base has no notes: the identity of the source and what it lost stand in the epoch's own record.
        notes = self._log.describe(record.epoch).notes
        self._learner.source, self._learner.lost = notes.get("source", ""), losses_of(notes)
        self._digest = self._log.digest(record.epoch)
        self._last = dataclasses.replace(record.without_arrays(), notes=dict(notes))
