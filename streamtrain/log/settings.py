"""Settings of the epoch log."""

from __future__ import annotations

from pydantic import Field

from streamtrain.settings import Settings

__all__ = ["LogSettings"]


class LogSettings(Settings):
    """Where the epoch log is, how often an epoch is cut, and how much of the past stays."""

    path: str = Field(min_length=1)
    """Directory of the log, on a local file system with hard links (ext4, xfs). Made where it is missing."""
    epoch_interval_s: float = Field(default=1.0, ge=0.05, le=3600)
    """How often what was learned becomes durable and visible to the store, exports and serving."""
    base_every_epochs: int = Field(default=300, ge=1, le=1_000_000)
    """A base is folded, in a process of its own, when this many epochs follow the newest one. Recovery reads at most about as many."""
    keep_epochs: int = Field(default=600, ge=1, le=100_000_000)
    """How many epochs up to the newest base stay for views that lag, for replay and for lineage; older ones are removed
    after each fold. Twice `base_every_epochs` or more leaves a way back when the newest base is damaged."""
