"""A line of JSON for each committed epoch: the exporter plug-in `journal`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from streamtrain.errors import DeltaGap
from streamtrain.exports import ExporterSettings, Position
from streamtrain.log.model import ModelDescription
from streamtrain.log.record import EpochRecord

__all__ = ["JournalExporter", "JournalSettings"]


_TAIL_BYTES = 1 << 20  # More than two lines have.


class JournalSettings(ExporterSettings):
    """What each epoch learned, for tools that read lines of JSON: how much, from when, and rows by table."""

    kind: Literal["journal"]
    """This exporter."""
    path: str = Field(min_length=1)
    """The file. It grows by about 300 bytes an epoch."""


class JournalExporter:
    """Appends to a file, whose last line is its position. See `streamtrain.exports.Exporter` for the contract.

    Args:
      settings: where.
      model: the log's; every line names it.
      takeover: nothing is held from others, so that nothing needs to be taken.
    """

    Settings = JournalSettings

    def __init__(self, settings: JournalSettings, model: ModelDescription, *, takeover: bool = False) -> None:
        self._model_id = model.model_id
        path = Path(settings.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered, so that a line that did not fit is not written later.
        self._file = path.open("a+b", buffering=0)
        self._position = self._resume()

    def position(self) -> Position | None:
        """The last whole line's epoch, where it is this model's."""
        return self._position

    def export(self, record: EpochRecord, digest: str) -> int:
        """Appends the epoch; durable when it returns."""
        if self._position is None or record.previous != self._position.digest:
            raise DeltaGap(f"epoch {record.epoch} does not follow the journal's {self._position}")
        return self._append("epoch", record, digest)

    def rebase(self, base: EpochRecord) -> int:
        """Appends a line that says that epochs before it may be missing."""
        return self._append("base", base, base.previous)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _append(self, kind: str, record: EpochRecord, digest: str) -> int:
        line: dict[str, Any] = {
            "kind": kind,
            "model_id": self._model_id,
            "epoch": record.epoch,
            "digest": digest,
            "samples_total": record.samples_total,
            "watermark_ms": record.watermark_ms,
            "rows": {table: len(rows.ids) for table, rows in record.tables.items()},
        }
        text = json.dumps(line).encode() + b"\n"
        try:
            if self._file.write(text) != len(text):
                raise OSError(f"no room for a line in {self._file.name}")
            os.fsync(self._file.fileno())
        except OSError:
            # The same epoch comes again, behind the last whole line.
            self._resume()
            raise
        self._position = Position(record.epoch, digest)
        return len(text)

    def _resume(self) -> Position | None:
        """Cuts off a line that a crash left half, and reads the one before it."""
        size = self._file.seek(0, os.SEEK_END)
        begin = max(0, size - _TAIL_BYTES)
        self._file.seek(begin)
        *whole, half = self._file.read(_TAIL_BYTES).split(b"\n")
        self._file.truncate(size - len(half))
        if not whole:
            return None
        found = json.loads(whole[-1])
        return Position(found["epoch"], found["digest"]) if found["model_id"] == self._model_id else None
