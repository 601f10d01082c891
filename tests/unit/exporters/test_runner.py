"""What the runner makes of an exporter plug-in that has a fault: an error of ours, so that training goes on."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from streamtrain.errors import ExportError
from streamtrain.exports import ExporterSettings, ExportRunner, Position
from streamtrain.log.record import EpochRecord
from tests.exporting import History


class Clumsy:
    """An exporter that fails at the epochs of `trips`, once each."""

    Settings = ExporterSettings

    def __init__(self, trips: list[int]) -> None:
        self._trips = trips
        self._at: Position | None = None

    def position(self) -> Position | None:
        return self._at

    def export(self, record: EpochRecord, digest: str) -> int:
        if record.epoch in self._trips:
            self._trips.remove(record.epoch)
            raise KeyError("table")
        self._at = Position(record.epoch, digest)
        return 1

    def rebase(self, base: EpochRecord) -> int:
        self._at = Position(base.epoch, base.previous)
        return 1

    def close(self) -> None:
        pass


def test_an_exporter_that_raises_is_named_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    history = History(tmp_path / "log")
    for _ in range(4):
        history.append()
    runner = ExportRunner(history.log, Clumsy([2]))
    with caplog.at_level(logging.DEBUG), pytest.raises(ExportError) as failed:
        runner.catch_up()
    assert "exporter 'Clumsy' failed: KeyError: 'table' (raised at " in str(failed.value)
    assert isinstance(failed.value.__cause__, KeyError) and "Traceback" in caplog.text
    assert runner.status.last_error == str(failed.value)
    assert runner.catch_up() == 3 and runner.status.last_error is None
