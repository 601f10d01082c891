"""Settings of the epoch log."""

from __future__ import annotations

from pydantic import Field

from streamtrain.log.readers import Holding
from streamtrain.settings import Settings

__all__ = ["LogSettings"]


class LogSettings(Settings):
    """Where the epoch log is, how often an epoch is cut, and how much of the past stays."""

    path: str = Field(min_length=1)
    """Directory of the log, on a file system with hard links (ext4, xfs; shared, for failover). Made where it is missing."""
    epoch_interval_s: float = Field(default=1.0, ge=0.05, le=3600)
    """How often what was learned becomes durable and visible to the store, exports and serving."""
    base_every_epochs: int = Field(default=300, ge=1, le=1_000_000)
    """A base is folded, in a process of its own, when this many epochs follow the newest one. Recovery reads at most about as many."""
    base_share: float = Field(default=0.5, gt=0, le=1000)
    """A base is also folded when the epochs since the newest one hold this share of its bytes, and 256 MiB: a restart reads
    little more than 1 + this share of the model."""
    keep_epochs: int = Field(default=600, ge=1, le=100_000_000)
    """How many epochs up to the newest base stay for views that lag, for replay and for lineage; older ones are removed
    after each fold. Twice `base_every_epochs` or more leaves a way back when the newest base is damaged."""
    reader_lease_s: float = Field(default=600.0, ge=15.0, le=604_800.0)
    """Older epochs stay while a registered reader (a standby, an exporter, the store, whoever follows the log) still
    needs them. One that has been silent for longer than this holds nothing any more."""
    hold_epochs_max: int = Field(default=86_400, ge=1, le=100_000_000)
    """How far behind the newest base a registered reader may fall. Beyond, a warning names it, the epochs go, and it
    goes on from the base: one that never catches up must not fill the disk."""

    @property
    def holding(self) -> Holding:
        """What registered readers may hold."""
        return Holding(self.reader_lease_s, self.hold_epochs_max)
