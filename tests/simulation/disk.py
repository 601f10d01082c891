"""A disk that remembers what is durable: real files, of which a power cut takes back what was not synced."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from streamtrain.log.files import Files
from tests.simulation.scheduler import Process, Scheduler

__all__ = ["Disk", "SimulatedFiles"]

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
      errors: failures so far.
      on_sync: told of a directory whose names have become durable.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.full = False
        self.fail_next: str | None = None
        self.errors = 0
        self.on_sync: Callable[[Path], None] = lambda directory: None
        self.live: dict[Path, dict[str, _Inode]] = {}
        self.durable: dict[Path, dict[str, _Inode]] = {}
        self._pending: dict[Path, list[tuple[str, _Inode | None]]] = {}
        self.inodes: dict[int, _Inode] = {}

    def add(self, path: Path, inode: _Inode | None) -> None:
        """`path` now names `inode`; None: nothing."""
        names = self.live.setdefault(path.parent, {})
        if inode is None:
            names.pop(path.name, None)
        else:
            names[path.name] = inode
        self._pending.setdefault(path.parent, []).append((path.name, inode))

    def sync(self, directory: Path) -> None:
        self._settle(directory, len(self._pending.get(directory, ())))
        self.on_sync(directory)

    def sync_everything(self) -> None:
        for directory, names in self.live.items():
            for inode in names.values():
                inode.synced = bytes(inode.data)
            self._settle(directory, len(self._pending.get(directory, ())))

    def _settle(self, directory: Path, count: int) -> None:
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
                (directory / name).unlink()
            for name, inode in after.items():
                torn = inode.dirty
                if torn:
                    inode.data = self._torn(inode)
                    inode.synced = bytes(inode.data)
                if torn or before.get(name) is not inode:
                    # A new file, because memory mapped from the old one must not shrink.
                    (directory / name).unlink(missing_ok=True)
                    (directory / name).write_bytes(inode.data)
            self.live[directory] = after

    def _torn(self, inode: _Inode) -> bytearray:
        random = self.scheduler.random
        kind, at = random.randrange(4), random.randint(0, len(inode.data))
        if kind == 0:
            return inode.data
        if kind == 1:
            return bytearray(inode.synced)
        return inode.data[:at] + (bytearray(len(inode.data) - at) if kind == 2 else b"")


class SimulatedFiles(Files):
    """The file layer of one process. Every call is a point where others run, this process dies, or the disk fails."""

    def __init__(self, disk: Disk, process: Process) -> None:
        self._disk, self._process = disk, process
        self._open: set[int] = set()
        process.cleanups.append(self._close_all)

    def _close_all(self) -> None:
        for descriptor in self._open:
            os.close(descriptor)
        self._open.clear()

    def _call(self, name: str, *, grows: bool = False) -> None:
        disk = self._disk
        disk.scheduler.point()
        if disk.fail_next == name:
            disk.fail_next = None
            disk.errors += 1
            disk.scheduler.say(f"{name} fails with EIO")
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if grows and disk.full:
            disk.errors += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

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
        self._disk.add(target, self._disk.live[source.parent][source.name])
        self._call("linked")

    def replace(self, source: Path, target: Path) -> None:
        self._call("replace")
        super().replace(source, target)
        self._disk.add(target, self._disk.live[source.parent][source.name])
        self._disk.add(source, None)

    def unlink(self, path: Path) -> None:
        self._call("unlink")
        super().unlink(path)
        self._disk.add(path, None)

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
