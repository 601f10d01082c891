"""Reading for several followers of the log in one process: what one has read and checked, the others are handed."""

from __future__ import annotations

import threading
from typing import Protocol

from streamtrain.log.record import EpochRecord

__all__ = ["Epochs", "SharedReads"]


class Epochs(Protocol):
    """What followers ask of a log: `LogReader` has this shape."""

    def head(self) -> int | None: ...
    def bases(self) -> list[int]: ...
    def read(self, epoch: int) -> EpochRecord: ...
    def read_base(self, epoch: int) -> EpochRecord: ...
    def digest(self, epoch: int) -> str: ...


class SharedReads:
    """A log of which the epoch that was read last is read and checked once, however many followers ask for it.

    Followers that keep up ask for the same epoch within moments, and each reading hashes every byte. For any thread; while
    one reads an epoch, the others wait for it. The record that is kept maps its file: it takes no memory of its own.
    """

    def __init__(self, log: Epochs) -> None:
        self._log = log
        self._guard = threading.Lock()
        self._last: tuple[int, str, EpochRecord] | None = None

    def read(self, epoch: int) -> EpochRecord:
        """See `LogReader.read`."""
        with self._guard:
            # Whoever goes back by hand may have moved the epoch away, and another may have its number now.
            digest = self._log.digest(epoch)
            if self._last is None or self._last[:2] != (epoch, digest):
                self._last = epoch, digest, self._log.read(epoch)
            return self._last[2]

    def head(self) -> int | None:
        """See `LogReader.head`."""
        return self._log.head()

    def bases(self) -> list[int]:
        """See `LogReader.bases`."""
        return self._log.bases()

    def read_base(self, epoch: int) -> EpochRecord:
        """See `LogReader.read_base`."""
        return self._log.read_base(epoch)

    def digest(self, epoch: int) -> str:
        """See `LogReader.digest`."""
        return self._log.digest(epoch)
