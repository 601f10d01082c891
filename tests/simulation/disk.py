"""A disk in memory that remembers what is durable: a power cut takes back what was not synced."""

from __future__ import annotations

import errno
import fcntl
import io
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np

import exporters.deltas
import streamtrain.log.epoch_log
import streamtrain.log.files
import streamtrain.log.ranges
import streamtrain.log.reader
import streamtrain.log.verify
import streamtrain.serving.follower
from streamtrain.log.files import Files
from streamtrain.log.reader import LogReader
from tests.simulation.loom import running
from tests.simulation.scheduler import Process, Scheduler

__all__ = ["PATCHES", "Disk", "Glances", "Reading", "SimulatedFiles", "WorldPath"]

Bytes = bytes | memoryview


@dataclass(slots=True, eq=False)
class _Inode:
    """A file's content.

    Attributes:
      number: its own; a new one where a power cut has changed the content.
      synced: what a power cut leaves for certain.
      held: by the flock of the process that writes it.
      parsed: what readers made of the content; see `contents`.
    """

    number: int
    data: bytearray = field(default_factory=bytearray)
    synced: bytes = b""
    held: bool = True
    parsed: dict[Any, Any] = field(default_factory=dict)
    _content: bytes | None = None

    @property
    def dirty(self) -> bool:
        return self.synced != self.data

    @property
    def content(self) -> bytes:
        """The data as it is now, copied once for all readers."""
        if self._content is None:
            self._content = bytes(self.data)
        return self._content

    def changed(self) -> None:
        self._content = None
        if self.parsed:
            self.parsed = {}


class Disk:
    """What a machine's directories hold, now and after a power cut.

    Names of a directory become durable in the order in which they changed (as a journal does it); any prefix of the
    changes since the directory was synced may survive. Content that was not synced may survive, be cut short, or be
    zeros from some place on.

    Attributes:
      full: writing raises ENOSPC.
      fail_next: the call that fails next, once, with EIO.
      strike: the call at which something is done, once, to the process that makes it, just before.
      errors: failures so far.
      on_sync: told of a directory whose names have become durable.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.full = False
        self.fail_next: str | None = None
        self.strike: tuple[str, Callable[[Process], None]] | None = None
        self.errors = 0
        self.on_sync: Callable[[Path], None] = lambda directory: None
        # By directory and name, both text: hashing and splitting paths would be a tenth of a world's cost.
        self.live: dict[str, dict[str, _Inode]] = {}
        self.durable: dict[str, dict[str, _Inode]] = {}
        self._pending: dict[str, list[tuple[str, _Inode | None]]] = {}
        self.inodes: dict[int, _Inode] = {}
        self._numbers = count(1)
        scheduler.disk = self

    def new(self) -> _Inode:
        return _Inode(next(self._numbers))

    def add(self, path: Path, inode: _Inode | None) -> None:
        """`path` now names `inode`; None: nothing."""
        directory, name = _place(path)
        names = self.live.setdefault(directory, {})
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode
        self._pending.setdefault(directory, []).append((name, inode))

    def inode(self, path: Path) -> _Inode:
        """What `path` names. Raises FileNotFoundError."""
        if (inode := self.find(path)) is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return inode

    def find(self, path: Path) -> _Inode | None:
        """What `path` names, or None."""
        directory, name = _place(path)
        names = self.live.get(directory)
        return None if names is None else names.get(name)

    def is_directory(self, path: Path) -> bool:
        return str(path) in self.live

    def durable_names(self, directory: Path) -> Collection[str]:
        """The names that a power cut leaves in a directory."""
        return self.durable.get(str(directory), {})

    def sync(self, directory: Path) -> None:
        self._settle(str(directory), len(self._pending.get(str(directory), ())))
        self.on_sync(directory)

    def sync_everything(self) -> None:
        for directory, names in self.live.items():
            for inode in names.values():
                inode.synced = bytes(inode.data)
            self._settle(directory, len(self._pending.get(directory, ())))

    def _settle(self, directory: str, count: int) -> None:
        pending, names = self._pending.pop(directory, []), self.durable.setdefault(directory, {})
        for name, inode in pending[:count]:
            if inode is None:
                names.pop(name, None)
            else:
                names[name] = inode

    def cut_power(self) -> None:
        """Takes back what was not durable. Every process of the machine must be dead."""
        random = self.scheduler.random
        for directory in list(self.live):
            self._settle(directory, random.randint(0, len(self._pending.get(directory, ()))))
            after = dict(self.durable.get(directory, {}))
            for inode in after.values():
                if inode.dirty:
                    inode.data = self._torn(inode)
                    inode.synced = bytes(inode.data)
                    inode.number = next(self._numbers)
                    inode.changed()
            self.live[directory] = after

    def _torn(self, inode: _Inode) -> bytearray:
        random = self.scheduler.random
        kind, at = random.randrange(4), random.randint(0, len(inode.data))
        if kind == 0:
            return inode.data
        if kind == 1:
            return bytearray(inode.synced)
        return inode.data[:at] + (bytearray(len(inode.data) - at) if kind == 2 else b"")


_COLLECTED = {"epochs", "bases", "deltas"}


def _place(path: Path) -> tuple[str, str]:
    """Directory and name."""
    return path.place if isinstance(path, WorldPath) else os.path.split(path)


class WorldPath(type(Path())):  # type: ignore[misc]
    """A path whose file is in the memory of the world that runs, but for locks; what is joined to it is kept."""

    def __new__(cls, *parts: Path | str) -> WorldPath:
        first = parts[0]
        return first if len(parts) == 1 and isinstance(first, WorldPath) else super().__new__(cls, *parts)

    _children: dict[str, WorldPath] | None = None

    def __truediv__(self, name: Any) -> WorldPath:
        if self._children is None:
            self._children = {}
        if (child := self._children.get(name)) is None:
            child = self._children[name] = super().__truediv__(name)
        return child

    _place: tuple[str, str] | None = None

    @property
    def place(self) -> tuple[str, str]:
        """Directory and name."""
        if self._place is None:
            self._place = os.path.split(self)
        return self._place

    def absolute(self) -> WorldPath:
        return self

    def exists(self, **_: Any) -> bool:
        disk = running().disk
        return disk.find(self) is not None or disk.is_directory(self)

    def stat(self, **_: Any) -> Any:
        """As far as it is asked for. Of what is not in memory, the real one: a lock's."""
        if (inode := running().disk.find(self)) is None:
            return super().stat(**_)
        return SimpleNamespace(st_mtime_ns=inode.number, st_ino=inode.number, st_size=len(inode.data))

    def iterdir(self) -> Iterator[WorldPath]:
        return iter([self / name for name in running().disk.live[str(self)]])

    def open(self, *_: Any, **__: Any) -> Reading:  # type: ignore[override]
        return Reading(running().disk.inode(self))

    def read_bytes(self) -> bytes:
        return running().disk.inode(self).content


class Reading(io.BytesIO):
    """A file to read."""

    def __init__(self, inode: _Inode) -> None:
        super().__init__(inode.content)
        self.inode = inode


def _flock(file: Reading, _: int) -> None:
    """The lock of a file that another process writes, if it lives."""
    if file.inode.held:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


class Glances(Files):
    """The file layer of somebody who is not in the world: no others run, nothing fails."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def names(self, path: Path) -> list[str]:
        return list(self._disk.live.get(str(path), ()))

    def exists(self, path: Path) -> bool:
        return self._disk.find(path) is not None or self._disk.is_directory(path)

    def size(self, path: Path) -> int:
        return len(self._disk.inode(path).data)

    def open(self, path: Path) -> BinaryIO:
        return Reading(self._disk.inode(path))

    def map(self, file: BinaryIO) -> Any:
        assert isinstance(file, Reading)
        return file.inode.content


class SimulatedFiles(Glances):
    """The file layer of one process. Every call is a point where others run, this process dies, or the disk fails."""

    def __init__(self, disk: Disk, process: Process) -> None:
        super().__init__(disk)
        self._process = process
        self._open: set[int] = set()
        process.cleanups.append(self._close_all)

    def _close_all(self) -> None:
        for descriptor in self._open:
            self._disk.inodes.pop(descriptor).held = False
        self._open.clear()

    def _call(self, name: str, *, grows: bool = False) -> None:
        disk = self._disk
        disk.scheduler.point()
        if disk.strike is not None and disk.strike[0] == name:
            (_, act), disk.strike = disk.strike, None
            act(self._process)
            disk.scheduler.wait(lambda: True)
        if disk.fail_next == name:
            disk.fail_next = None
            disk.errors += 1
            disk.scheduler.say(f"{name} fails with EIO")
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if grows and disk.full:
            disk.errors += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def make_directory(self, path: Path) -> None:
        if str(path) not in self._disk.live:
            # Locks are real, and so is the directory that holds one.
            super().make_directory(path)
            self._disk.live[str(path)] = {}

    def create(self, path: Path) -> int:
        self._call("create", grows=True)
        self._refuse_taken(path)
        inode = self._disk.new()
        self._disk.inodes[inode.number] = inode
        self._open.add(inode.number)
        self._disk.add(path, inode)
        return inode.number

    def write(self, descriptor: int, data: Bytes) -> None:
        self._call("write", grows=True)
        inode = self._disk.inodes[descriptor]
        inode.data += data
        inode.changed()

    def patch(self, descriptor: int, offset: int, data: Bytes) -> None:
        self._call("patch", grows=True)
        inode = self._disk.inodes[descriptor]
        inode.data[offset : offset + len(data)] = data
        inode.changed()

    def sync(self, descriptor: int) -> None:
        self._call("sync")
        inode = self._disk.inodes[descriptor]
        inode.synced = inode.content

    def close(self, descriptor: int) -> None:
        self._call("close")
        self._open.discard(descriptor)
        self._disk.inodes.pop(descriptor).held = False

    def link(self, source: Path, target: Path) -> None:
        self._call("link", grows=True)
        inode = self._disk.inode(source)
        self._refuse_taken(target)
        self._disk.add(target, inode)
        self._call("linked")

    def _refuse_taken(self, path: Path) -> None:
        if self._disk.find(path) is not None:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))

    def replace(self, source: Path, target: Path) -> None:
        self._call("replace")
        self._move(source, target)

    def rename(self, source: Path, target: Path) -> None:
        self._call("rename")
        self._move(source, target)

    def _move(self, source: Path, target: Path) -> None:
        self._disk.add(target, self._disk.inode(source))
        self._disk.add(source, None)

    def unlink(self, path: Path) -> None:
        self._call("unlink")
        self._disk.inode(path)
        self._disk.add(path, None)
        # A death among removals is what tells whether the rest was safe: rare by chance, so it has a name to strike at.
        if _place(path)[0].rpartition("/")[2] in _COLLECTED:
            self._call("collected")

    def sync_directory(self, path: Path) -> None:
        self._call("sync_directory")
        self._disk.sync(path)

    def names(self, path: Path) -> list[str]:
        self._call("names")
        return super().names(path)

    def exists(self, path: Path) -> bool:
        self._call("exists")
        return super().exists(path)

    def open(self, path: Path) -> BinaryIO:
        self._call("open")
        return super().open(path)


PATCHES: list[tuple[Any, str, Any]] = [
    (streamtrain.log.reader, "Path", WorldPath),
    (streamtrain.log.epoch_log, "Path", WorldPath),
    (exporters.deltas, "Path", WorldPath),
    (streamtrain.serving.follower, "Path", WorldPath),
    (
        streamtrain.log.files,
        "fcntl",
        SimpleNamespace(flock=_flock, LOCK_EX=fcntl.LOCK_EX, LOCK_NB=fcntl.LOCK_NB),
    ),
    (
        streamtrain.log.verify,
        "LogReader",
        SimpleNamespace(open=lambda path: LogReader.open(path, Glances(running().disk))),
    ),
    (streamtrain.log.ranges, "tempfile", SimpleNamespace(TemporaryFile=lambda dir: io.BytesIO())),
    (streamtrain.log.ranges, "_mapped", lambda file, dtype: np.frombuffer(file.getvalue(), dtype)),
]
"""What makes the product's paths and nameless files those of the world."""
