"""The contract between the daemon and what decides which of several daemons learns: settings, and the shape of the decider.

It is a failure detector, not a fence: for a moment two daemons may both believe that they own. The epoch log's append
decides between them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from pydantic import Field, model_validator

from streamtrain.settings import Settings

__all__ = ["Candidate", "FailoverSettings", "Ownership", "TellsOwnership"]

_BEATS_MIN = 3


class FailoverSettings(Settings):
    """Several daemons with one job and one log: one learns, the others follow the log and take over. Needs a Kafka source."""

    group_id: str = Field(min_length=1, max_length=249)
    """Consumer group that the daemons of this model join, and nothing else. Not `source.group_id`."""
    session_timeout_s: float = Field(default=10.0, gt=0, le=1800)
    """A daemon that is silent for so long loses the model to another. The broker bounds it
    (`group.min.session.timeout.ms`, 6 s unless changed, and `group.max.session.timeout.ms`)."""
    heartbeat_interval_s: float = Field(default=1.0, gt=0, le=600)
    """How often a daemon says that it lives, and hears of changes; at most a third of `session_timeout_s`."""

    @model_validator(mode="after")
    def _beats_often(self) -> FailoverSettings:
        if self.heartbeat_interval_s * _BEATS_MIN > self.session_timeout_s:
            raise ValueError(
                f"heartbeat_interval_s = {self.heartbeat_interval_s:g} must be at most a third of session_timeout_s = "
                f"{self.session_timeout_s:g}: one lost heartbeat must not cost the model"
            )
        return self


@dataclass(frozen=True, slots=True)
class Candidate:
    """Who wants to own.

    Attributes:
      model_id: of the log that it follows: a group has one model.
      name: host and process, for people.
      epoch: asked from any thread: the newest epoch that it has, -1 for none.
    """

    model_id: str
    name: str
    epoch: Callable[[], int]


class Ownership(Protocol):
    """One daemon's place among those of its model. All methods run on the daemon's loop."""

    async def owned(self) -> None:
        """Joins the others, and waits until this daemon is the one that owns. Cancelling it leaves it joined.

        Raises:
          ConfigError: the settings cannot work: the broker refuses them, or the others have another model.
          SourceError: this user may not join.
        """
        ...

    async def lost(self) -> str:
        """After `owned`: waits until another daemon owns. While nobody can be asked, this one goes on.

        Returns:
          The name of the one that owns now.

        Raises: as `owned`.
        """
        ...

    async def close(self) -> None:
        """Leaves, so that another takes over at once. Safe to call twice."""
        ...


@runtime_checkable
class TellsOwnership(Protocol):
    """A source that can tell ownership: failover needs one. Its class has the method of that name, whatever else it is."""

    def ownership(self, settings: FailoverSettings, candidate: Candidate) -> Ownership:
        """A new place, not joined yet."""
        ...
