"""What a look at the surroundings of a job finds: how each thing stands, and what mends it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["Finding", "Level", "Resumption"]


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    WARNING = "warning"
    """It runs, with less speed, safety or time to react than it could have."""
    FAULT = "fault"
    """It would not start, or would stop."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
      area: what it belongs to: `settings`, `processor`, `clock`, `disk`, `log`, `source`, `store`, ...
      level: how much it matters.
      text: what was found, in one line where it is fine.
      remedy: what to do, a command where one does it; "" where nothing is to be done.
    """

    area: str
    level: Level
    text: str
    remedy: str = ""

    @staticmethod
    def ok(area: str, text: str) -> Finding:
        """All is well."""
        return Finding(area, Level.OK, text)

    @staticmethod
    def warning(area: str, text: str, remedy: str) -> Finding:
        """See `Level.WARNING`."""
        return Finding(area, Level.WARNING, text, remedy)

    @staticmethod
    def fault(area: str, text: str, remedy: str) -> Finding:
        """See `Level.FAULT`."""
        return Finding(area, Level.FAULT, text, remedy)


@dataclass(frozen=True, slots=True)
class Resumption:
    """What a source is looked at for, by a consumer's `diagnose` where it has one.

    Attributes:
      positions: where the log says that reading goes on; None of a model that has learned nothing.
      identity: the source's identity when the positions were made; "" where it is not known.
      groups: names of groups that the daemon takes part in besides what the source's own settings say.
    """

    positions: Mapping[str, int] | None = None
    identity: str = ""
    groups: tuple[str, ...] = field(default=())
