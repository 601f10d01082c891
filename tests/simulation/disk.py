"""A disk that remembers what is durable: real files, of which a power cut takes back what was not synced."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from streamtrain.log.files import Files
from tests.simulation.scheduler import Process, Scheduler

__all__ = ["Disk", "Glances", "SimulatedFiles"]

Bytes = bytes | memoryview


@dataclass(slots=True, eq=False)
class _Inode:
    data: bytearray = field(default_factory=bytearray)
    synced: bytes = b""

    @property
    def dirty(self) -> bool:
        return self.synced != self.data


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

    def add(self, path: Path, inode: _Inode | None) -> None:
        """`path` now names `inode`; None: nothing."""
        directory, name = os.path.split(path)
        names = self.live.setdefault(directory, {})
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode
        self._pending.setdefault(directory, []).append((name, inode))

    def inode(self, path: Path) -> _Inode:
        """What `path` names. Raises FileNotFoundError."""
        directory, name = os.path.split(path)
        try:
            return self.live[directory][name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None

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
            before, after = self.live[directory], dict(self.durable.get(directory, {}))
            for name in before.keys() - after.keys():
                Path(directory, name).unlink()
            for name, inode in after.items():
                torn = inode.dirty
                if torn:
                    inode.data = self._torn(inode)
                    inode.synced = bytes(inode.data)
                if torn or before.get(name) is not inode:
                    # A new file, because memory mapped from the old one must not shrink.
                    Path(directory, name).unlink(missing_ok=True)
                    Path(directory, name).write_bytes(inode.data)
            self.live[directory] = after

    def _torn(self, inode: _Inode) -> bytearray:
        random = self.scheduler.random
        kind, at = random.randrange(4), random.randint(0, len(inode.data))
        if kind == 0:
            return inode.data
        if kind == 1:
            return bytearray(inode.synced)
        return inode.data[:at] + (bytearray(len(inode.data) - at) if kind == 2 else b"")


class _Reading(io.BytesIO):
    """A file to read; the real one only where its lock is wanted."""

    def __init__(self, path: Path, data: Bytes) -> None:
        super().__init__(data)
        self._path = path
        self._file: io.FileIO | None = None

    def fileno(self) -> int:
        if self._file is None:
            self._file = io.FileIO(self._path)
        return self._file.fileno()

    def close(self) -> None:
        super().close()
        if self._file is not None:
            self._file.close()


class Glances(Files):
    """The file layer of somebody who is not in the world: answered from memory, for the system's calls are dear."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def names(self, path: Path) -> list[str]:
        return list(self._disk.live.get(str(path), ()))

    def exists(self, path: Path) -> bool:
        directory, name = os.path.split(path)
        return name in self._disk.live.get(directory, ()) or str(path) in self._disk.live

    def size(self, path: Path) -> int:
        return len(self._disk.inode(path).data)

    def open(self, path: Path) -> BinaryIO:
        return _Reading(path, self._disk.inode(path).data)


class SimulatedFiles(Glances):
    """The file layer of one process. Every call is a point where others run, this process dies, or the disk fails."""

    def __init__(self, disk: Disk, process: Process) -> None:
        super().__init__(disk)
        self._process = process
        self._open: set[int] = set()
        process.cleanups.append(self._close_all)

    def _close_all(self) -> None:
        for descriptor in self._open:
            os.close(descriptor)
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
        super().make_directory(path)
        self._disk.live.setdefault(str(path), {})

    def create(self, path: Path) -> int:
        self._call("create", grows=True)
        descriptor = super().create(path)
        self._open.add(descriptor)
        inode = self._disk.inodes[descriptor] = _Inode()
        self._disk.add(path, inode)
        return descriptor

    def write(self, descriptor: int, data: Bytes) -> None:
        self._call("write", grows=True)
        super().write(descriptor, data)
        self._disk.inodes[descriptor].data += data

    def patch(self, descriptor: int, offset: int, data: Bytes) -> None:
        self._call("patch", grows=True)
        super().patch(descriptor, offset, data)
        self._disk.inodes[descriptor].data[offset : offset + len(data)] = data

    def sync(self, descriptor: int) -> None:
        self._call("sync")
        inode = self._disk.inodes[descriptor]
        inode.synced = bytes(inode.data)

    def close(self, descriptor: int) -> None:
        self._call("close")
        self._open.discard(descriptor)
        super().close(descriptor)

    def link(self, source: Path, target: Path) -> None:
        self._call("link", grows=True)
        super().link(source, target)
        self._disk.add(target, self._disk.inode(source))
        self._call("linked")

    def replace(self, source: Path, target: Path) -> None:
        self._call("replace")
        super().replace(source, target)
        self._disk.add(target, self._disk.inode(source))
        self._disk.add(source, None)

    def unlink(self, path: Path) -> None:
        self._call("unlink")
        super().unlink(path)
        self._disk.add(path, None)

    def sync_directory(self, path: Path) -> None:
        self._call("sync_directory")
        self._disk.sync(path)

    def rename(self, source: Path, target: Path) -> None:
        self._call("rename")
        super().rename(source, target)
        self._disk.add(target, self._disk.inode(source))
        self._disk.add(source, None)

    def names(self, path: Path) -> list[str]:
        self._call("names")
        return super().names(path)

    def exists(self, path: Path) -> bool:
        self._call("exists")
        return super().exists(path)

    def open(self, path: Path) -> BinaryIO:
        self._call("open")
        return super().open(path)
