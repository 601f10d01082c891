"""A lock file: flocked by the process that writes a directory, so that a second one is told at once.

A courtesy, never the fence: a process that is paused keeps its flock, and one on another host may not see it. So whoever
knows that the holder is dead or paused may replace the file; the holder then has the lock of a file without a name.
"""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

__all__ = ["LockFile", "LockHeld"]


class LockHeld(Exception):
    """Another process has the lock. Its text names that process, as the file does."""


class LockFile:
    """A lock that this process took. Make one with `take`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor

    @classmethod
    def take(cls, path: Path, *, replace: bool = False) -> tuple[LockFile, str]:
        """Takes the lock and writes this process's name into it.

        Args:
          replace: the holder, if there is one, was found dead or paused: puts a new file in place of its own.

        Returns:
          The lock, and who was replaced; "" where nobody was.

        Raises:
          LockHeld: another process has it.
          OSError: the file cannot be written.
        """
        replaced = ""
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            lock = cls(path, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Whoever replaced the file in between has the lock that counts.
                if lock.held:
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, f"pid {os.getpid()}, host {socket.gethostname()}\n".encode(), 0)
                    return lock, replaced
            except BlockingIOError:
                holder = os.pread(descriptor, 1024, 0).decode(errors="replace").strip() or "unknown"
                if not replace:
                    lock.close()
                    raise LockHeld(holder) from None
                if lock.held:
                    path.unlink(missing_ok=True)
                    replaced = holder
            except OSError:
                lock.close()
                raise
            lock.close()

    @property
    def held(self) -> bool:
        """Whether the file of that name is still the one that was locked."""
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return False
        here = os.fstat(self._descriptor)
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)

    def close(self) -> None:
        """Lets go of it. The file stays: removing it would let two others each lock one of their own."""
        os.close(self._descriptor)
