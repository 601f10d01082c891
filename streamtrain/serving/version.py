"""What a follower serves and how it fares, as values."""

from __future__ import annotations

from dataclasses import dataclass

from streamtrain.serving.files import Lineage
from streamtrain.serving.manifest import Position

__all__ = ["FollowerStatus", "Version"]


@dataclass(frozen=True, slots=True)
class Version:
    """A version in service.

    Attributes:
      position: epoch, and digest of its record in the log.
      lineage: what the model had learned from by then.
      exported_at_ms: when the exporter wrote it, by its wall clock.
      visible_at_ms: when predictions began to use it: this process's wall clock, milliseconds since 1970.
    """

    position: Position
    lineage: Lineage
    exported_at_ms: int
    visible_at_ms: int

    @property
    def epoch(self) -> int:
        return self.position.epoch


@dataclass(frozen=True, slots=True)
class FollowerStatus:
    """Counters since the follower was made.

    Attributes:
      deltas_applied, bases_loaded: files applied.
      fallbacks: times that what grew from a base replaced a version in service, because no chain led on from it or
        its next delta was damaged.
      refused: times that a file was refused because it was damaged or gone.
      head_epoch: the newest epoch that the manifest had when it was read last; None before that.
      last_error: why the newest version is not served, in words for an operator; None when it is.
    """

    deltas_applied: int = 0
    bases_loaded: int = 0
    fallbacks: int = 0
    refused: int = 0
    head_epoch: int | None = None
    last_error: str | None = None
