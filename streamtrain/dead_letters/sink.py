"""The contract of what keeps dead letters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from streamtrain.dead_letters.letter import DeadLetter

__all__ = ["DeadLetterSink"]


class DeadLetterSink(Protocol):
    """Keeps letters. All methods run on the daemon's loop, one at a time.

    Attributes:
      name: where letters go, for people.
      bytes_max: bound on the key and value of one letter.
    """

    @property
    def name(self) -> str: ...

    @property
    def bytes_max(self) -> int: ...

    async def open(self) -> None:
        """Sees that letters can be kept.

        Raises:
          DeadLettersUnavailable: they cannot, now.
          ConfigError: they never can, as the settings are.
        """
        ...

    async def write(self, letters: Iterable[DeadLetter]) -> int:
        """Keeps letters; returns how many once all of them are durable. Holds a bounded part of them in memory.

        Raises:
          DeadLettersUnavailable: some of them are not. The same call may be made again, and may repeat letters.
        """
        ...

    async def close(self) -> None:
        """Releases everything. Safe to call twice."""
        ...
