from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from streamtrain.errors import EpochMissing
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.fold import fold
from streamtrain.log.record import EpochRecord
from streamtrain.restorer import Restorer
from tests.reference_log import append_epochs


class _Learner:
    """Remembers which epochs it was given; after `during`, others do something."""

    def __init__(self, log: EpochLog) -> None:
        self._log, self.during = log, -1
        self.epochs: list[int] = []
        self.source = ""
        self.lost: list[Any] = []
        self.sparse = SimpleNamespace(needs_history=False, resident=frozenset())

    def restore(self, records: Iterable[EpochRecord], **options: Any) -> EpochRecord:
        self.epochs = []
        return self.advance(records, **options)

    def advance(self, records: Iterable[EpochRecord], **_: Any) -> EpochRecord:
        for record in records:
            self.epochs.append(record.epoch)
            if record.epoch == self.during:
                append_epochs(self._log, 6)
                fold(self._log.path)
                self._log.collect(1)
        return record


def test_a_standby_whose_next_epochs_are_collected_begins_anew_from_the_base(tmp_path: Path) -> None:
    """Simulation seed 102909."""
    log = EpochLog.create(tmp_path / "log", "clicks", {"seed": 1})
    learner: Any = _Learner(log)
    restorer = Restorer(learner, EpochLog.open(log.path), sequential=False, rows=True)
    append_epochs(log, 0)
    assert restorer.catch_up() is not None
    append_epochs(log, 6)
    learner.during = 2
    last = restorer.catch_up()
    assert last is not None and last.epoch == restorer.epoch == 6
    assert learner.epochs == [6]


@pytest.mark.parametrize("rows", [True, False])
def test_a_start_whose_epoch_is_collected_while_it_notes_it_begins_anew(tmp_path: Path, rows: bool) -> None:
    """Simulation seed 207001."""
    log = EpochLog.create(tmp_path / "log", "clicks", {"seed": 1})
    learner: Any = _Learner(log)
    append_epochs(log, 0)
    learner.during = 0
    last = Restorer(learner, EpochLog.open(log.path), sequential=False, rows=rows).catch_up()
    assert last is not None and last.epoch == 6
    assert learner.epochs == [6]


def test_a_standby_tells_of_an_epoch_that_is_gone_although_the_owner_goes_on(tmp_path: Path) -> None:
    log = EpochLog.create(tmp_path / "log", "clicks", {"seed": 1})
    append_epochs(log, 4)
    log.epoch_path(2).unlink()
    begun: list[str] = []

    class Learner(_Learner):
        def restore(self, records: Iterable[EpochRecord], **options: Any) -> EpochRecord:
            begun.append(append_epochs(log, 5 + len(begun)))
            assert len(begun) < 5, "it begins anew without end"
            return super().restore(records, **options)

    learner: Any = Learner(log)
    with pytest.raises(EpochMissing, match="has no epoch 2"):
        Restorer(learner, EpochLog.open(log.path), sequential=False, rows=True).catch_up()
