"""The contract between the daemon and an exporter of committed epochs, and the runner that keeps one up to date.

An exporter is a view of the epoch log, like the store: it sees committed epochs only, in its own thread, may fall
behind or fail without holding up training, and goes on from its own durable position after a restart.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from streamtrain.errors import DeltaGap, EpochMissing, ExportError, StreamtrainError
from streamtrain.log.model import ModelDescription
from streamtrain.log.record import EpochRecord
from streamtrain.log.shared import Epochs
from streamtrain.plugins import blamed
from streamtrain.serving.manifest import Position
from streamtrain.settings import Settings

__all__ = ["ExportRunner", "ExportStatus", "Exporter", "ExporterSettings", "Position"]

_LOG = logging.getLogger(__name__)


class ExporterSettings(Settings):
    """What every exporter's settings have. A plug-in's own `Settings` class extends it."""

    kind: str
    """Which exporter plug-in: `deltas`, or a third party's."""


class Exporter(Protocol):
    """Turns committed epochs into something else. One thread calls it, never two at once.

    A class with this shape is registered under the entry-point group `streamtrain.exporters`. It has a class
    attribute `Settings` (an `ExporterSettings`) and is made by `cls(settings, model, takeover=...)`.

    Args:
      takeover: the process that exported before was found dead or paused (failover): take from it whatever it holds.
    """

    Settings: type[ExporterSettings]

    def __init__(self, settings: Any, model: ModelDescription, *, takeover: bool = False) -> None: ...

    def position(self) -> Position | None:
        """The last epoch exported, from the exporter's own durable state; None when there is none."""
        ...

    def export(self, record: EpochRecord, digest: str) -> int:
        """Exports the epoch after `position()`; its digest in the log is `digest`.

        When it returns, the epoch is durable where it went. When it raises, the same epoch comes again.

        Returns:
          Bytes written.

        Raises:
          DeltaGap: the record does not follow `position()`; `rebase` is called instead.
          ExportError: it failed; it is tried again later.
        """
        ...

    def rebase(self, base: EpochRecord) -> int:
        """Starts afresh from a base of the log: all rows there are. `base.previous` is the digest of its epoch.

        The way in for an empty exporter, and the way on when the next epoch is no longer in the log.

        Returns, Raises: as `export`.
        """
        ...

    def close(self) -> None:
        """Stops whatever runs and releases everything. What was exported stays. Safe to call twice."""
        ...


@dataclass(frozen=True, slots=True)
class ExportStatus:
    """How an exporter fares since the runner was made.

    Attributes:
      position: the last epoch exported, by this process or one before it.
      exported: epochs exported; a base counts as one.
      rebases: how often it had to start afresh from a base.
      last_bytes, bytes_total: bytes written by the last export, and by all of them.
      last_error: why the last round did not reach the log's head; None when it did.
    """

    position: Position | None = None
    exported: int = 0
    rebases: int = 0
    last_bytes: int = 0
    bytes_total: int = 0
    last_error: str | None = None


class ExportRunner:
    """Keeps one exporter at the head of the log.

    Args:
      log: the epoch log; only read.
      exporter: made for this log's model.
    """

    def __init__(self, log: Epochs, exporter: Exporter) -> None:
        self._log = log
        self._exporter = exporter
        self.status = ExportStatus(position=exporter.position())

    def catch_up(self, stop: Callable[[], bool] = lambda: False) -> int:
        """Exports every committed epoch after the exporter's position, in order.

        Blocks on the disk; call it in a thread whenever an epoch was committed.

        Args:
          stop: asked before each epoch; True ends the round early.

        Returns:
          The last epoch exported; -1 when the log is empty.

        Raises:
          StreamtrainError: the log's or the exporter's, kept in `status.last_error`. Calling again goes on
            where this stopped.
        """
        try:
            # An error of ours, so that it is tried again and training goes on.
            with blamed(ExportError, f"exporter {type(self._exporter).__name__!r}"):
                while not stop() and self._export_next():
                    pass
        except (StreamtrainError, OSError) as error:
            self.status = replace(self.status, last_error=str(error))
            raise
        position = self._exporter.position()
        self.status = replace(self.status, position=position, last_error=None)
        return -1 if position is None else position.epoch

    def _export_next(self) -> bool:
        """Exports one epoch or base; False when there is none to export."""
        head, position = self._log.head(), self._exporter.position()
        if head is None or (position is not None and position.epoch == head):
            return False
        if position is None:
            self._rebase(None, "nothing was exported yet")
            return True
        try:
            # Missing as well where the log was set back to before the exporter's position.
            record = self._log.read(position.epoch + 1)
            written = self._exporter.export(record, self._log.digest(record.epoch))
        except (DeltaGap, EpochMissing) as gap:
            self._rebase(position, str(gap))
        else:
            self._count(written)
        return True

    def _rebase(self, position: Position | None, reason: str) -> None:
        base = self._newest_base()
        if position == (base.epoch, base.previous):
            raise EpochMissing(f"the log does not go on from its base at {position}: {reason}")
        _LOG.info("exporting from the base at epoch %d: %s", base.epoch, reason)
        written = self._exporter.rebase(base)
        self.status = replace(self.status, rebases=self.status.rebases + 1)
        self._count(written)

    def _newest_base(self) -> EpochRecord:
        listed: int | None = None
        while True:
            bases = self._log.bases()
            newest, before = max(bases, default=0), listed
            try:
                if bases:
                    return self._log.read_base(newest)
                # The genesis is all there is at epoch 0, which is what a base is.
                return replace(self._log.read(0), previous=self._log.digest(0))
            except EpochMissing:
                # Collected since it was listed: then there is a newer one.
                if newest == before:
                    raise
                listed = newest

    def _count(self, written: int) -> None:
        status = self.status
        self.status = replace(
            status,
            position=self._exporter.position(),
            exported=status.exported + 1,
            last_bytes=written,
            bytes_total=status.bytes_total + written,
        )
