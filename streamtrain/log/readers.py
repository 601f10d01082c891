"""Who follows a directory of epochs, so that what a follower still needs is not collected: one small file each.

    readers/<name>.json    who it is, the newest epoch that it has, and when it said so

A registration is a lease on the epochs after the one that it names. It needs no fsync and no lock: losing one costs
its reader a reload from a base, never data. A reader registers before it decides where it begins to read, and so is
held for by every collection that begins later; docs/epoch-log.md has the order and what may happen in between.

An export directory has the same, for the followers of its deltas (docs/serving.md).
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from streamtrain.errors import LogError, RegistrationRefused
from streamtrain.log.files import Aside, Files, clean_asides, typed_errors
from streamtrain.log.sealed import seal, unseal

__all__ = ["READERS", "Holding", "Reader", "Readers", "Registration"]

logger = logging.getLogger(__name__)

READERS = "readers"
_FORMAT = 1
_FILE, _ASIDE = ".json", ".aside"
_FILE_BYTES_MAX = 1 << 14
_NAME_BYTES_MAX = 160
_READERS_MAX = 256
# Errors that say nothing about the file.
_PASSING = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT}
# A moving reader writes this often, one that stands still that often: a lease outlives several of either.
_MOVING_S, _STANDING_S = 1.0, 5.0


@dataclass(frozen=True, slots=True)
class Holding:
    """How long, and how far back, what a registered reader has not read yet is kept for it.

    Attributes:
      lease_s: a reader that has been silent for longer holds nothing any more.
      epochs_max: how far behind the newest base a reader may be. One that never catches up must not fill the disk.
    """

    lease_s: float = 600.0
    epochs_max: int = 86_400


@dataclass(frozen=True, slots=True)
class Reader:
    """A registration, as it was found.

    Attributes:
      name: its own, for people; one file each.
      kind: what it is: `standby`, `follower`, `exporter`, `store`, `reader`.
      host, pid: the process that wrote it.
      id: of this one registration; another of the same name has another.
      epoch: the newest that it has: it needs those after it. None: it has not decided yet where it begins, and
        needs everything there is.
      renewed_at_ms: when, by its wall clock, milliseconds since 1970.
    """

    name: str
    kind: str
    host: str
    pid: int
    id: str
    epoch: int | None
    renewed_at_ms: int

    def to_bytes(self) -> bytes:
        return seal({"format": _FORMAT, **asdict(self)})

    @staticmethod
    def from_bytes(data: bytes) -> Reader:
        """Raises ValueError, KeyError or TypeError where `data` is not of `to_bytes`."""
        document = unseal(data)
        if document.pop("format") != _FORMAT:
            raise ValueError(f"its format is not {_FORMAT}")
        reader = Reader(**document)
        epoch = 0 if reader.epoch is None else reader.epoch
        numbers = (reader.pid, epoch, reader.renewed_at_ms)
        texts = (reader.name, reader.kind, reader.host, reader.id)
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError("a number in it is none, or below 0")
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a name in it is no text")
        return reader

    def lapsed(self, now_s: float, lease_s: float) -> bool:
        """Whether it has been silent for too long. A time far ahead is a clock gone wrong, and holds nothing either."""
        return abs(now_s - self.renewed_at_ms / 1000) > lease_s


class Readers:
    """The readers of one directory. Stateless but for what it has warned of; safe to use from any thread and process.

    Args:
      directory: an epoch log or an export; `readers/` is made in it by the first who registers.
      files: the calls that reach the disk.
      clock: seconds since 1970.
    """

    def __init__(
        self, directory: Path, files: Files | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.path = directory / READERS
        self._files, self._clock = files or Files(), clock

    def register(self, name: str, epoch: int | None = None, *, kind: str = "reader") -> Registration:
        """Registers a reader, so that collections that begin from now on leave it what it needs.

        A name has one owner: whoever registers it last. The one before is told at its next renewal, once, and then
        holds nothing.

        Args:
          name: any text; at most 160 bytes once it is percent-encoded for a file name.
          epoch: the newest that the reader has; None where it has nothing and is still to choose a base.
          kind: what it is, for people.

        Raises:
          RegistrationRefused: this user may not write there, or there are 256 readers already. Reading without
            being registered stays possible.
          ValueError: the name is empty or too long: a mistake of the caller.
        """
        path = self._file_of(name)
        reader = Reader(
            name, kind, socket.gethostname(), os.getpid(), secrets.token_hex(8), epoch, self.now_ms()
        )
        try:
            with typed_errors("register a reader in", self.path):
                if not self._files.exists(self.path.parent):
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
                self._files.make_directory(self.path)
                others = [other for other in self._names() if other != path.name]
                if len(others) >= _READERS_MAX:
                    raise LogError(
                        f"cannot register a reader in {self.path}: there are {len(others)} already; remove those that "
                        "are gone (each file names its process), or let collection do so when their leases end"
                    )
                self.write(reader)
        except LogError as error:
            raise RegistrationRefused(
                f"{error}. Without being registered it can be read as well; what lags far behind then starts again from a base"
            ) from error
        return Registration(self, reader)

    def found(self) -> list[Reader]:
        """All registrations, by name, leases that have ended too. What is none is ignored, with a warning.

        Raises:
          OSError: the directory is there and cannot be listed, or the disk fails at one of them.
        """
        return sorted((reader for _, reader in self._read_all()), key=lambda reader: reader.name)

    def held(self, newest: int, holding: Holding) -> list[int | None]:
        """The epochs that readers are at and for which what follows must stay. To be asked just before removing it.

        Removes the registrations of those that have been silent for too long, and what dead writers left.

        Args:
          newest: the epoch of the newest base.
          holding: the bounds.

        Returns:
          An epoch for each that holds; None of one that has not chosen yet.

        Raises:
          OSError: the directory is there and cannot be listed, or the disk fails at a registration: nothing may go.
        """
        held: list[int | None] = []
        for path, reader in self._read_all():
            if reader.lapsed(self._clock(), holding.lease_s):
                # Renewed this very moment, it is written again at its next renewal.
                with suppress(OSError):
                    self._files.unlink(path)
                logger.info("reader %s was silent for too long: it holds nothing any more", reader.name)
            elif reader.epoch is not None and newest - reader.epoch > holding.epochs_max:
                logger.warning(
                    "reader %s (%s, pid %d on %s) is at epoch %d, more than %d before the newest base: epochs are no "
                    "longer kept for it, and it starts again from that base (hold_epochs_max)",
                    reader.name,
                    reader.kind,
                    reader.pid,
                    reader.host,
                    reader.epoch,
                    holding.epochs_max,
                )
            else:
                held.append(reader.epoch)
        with suppress(OSError):
            clean_asides(self._files, self.path, _ASIDE)
        return held

    # For a registration

    def now_ms(self) -> int:
        return int(self._clock() * 1000)

    def read(self, name: str) -> Reader | None:
        """The registration of that name; None where there is none, or none that can be read."""
        try:
            return self._read(self._file_of(name))
        except (OSError, KeyError, TypeError, ValueError):
            return None

    def write(self, reader: Reader) -> None:
        """Puts a registration in place of the one before. Raises OSError."""
        path = self._file_of(reader.name)
        with Aside(self._files, self.path, _ASIDE.removeprefix(".")) as aside:
            aside.write(reader.to_bytes())
            aside.replace(path)

    def remove(self, name: str) -> None:
        """Raises OSError, also where it is gone already."""
        self._files.unlink(self._file_of(name))

    def _file_of(self, name: str) -> Path:
        encoded = quote(name, safe=" @:+=,")
        if not 0 < len(encoded) <= _NAME_BYTES_MAX:
            raise ValueError(
                f"a reader's name has 1 to {_NAME_BYTES_MAX} bytes in a file name, not {len(encoded)}: {name!r}"
            )
        return self.path / f"{encoded}{_FILE}"

    def _names(self) -> list[str]:
        """The names of what may be registrations."""
        try:
            return sorted(name for name in self._files.names(self.path) if name.endswith(_FILE))
        except FileNotFoundError:
            return []

    def _read_all(self) -> Iterator[tuple[Path, Reader]]:
        for name in self._names():
            path = self.path / name
            try:
                reader = self._read(path)
                if self._file_of(reader.name) != path:
                    raise ValueError("it belongs to a reader of another name")
            except FileNotFoundError:
                continue
            except OSError as error:
                # What cannot be read for the moment may hold something; a foreign directory or file never does.
                if error.errno in _PASSING:
                    raise
                logger.warning("%s cannot be read and holds nothing: %s", path, error)
            except (KeyError, TypeError, ValueError) as error:
                logger.warning("%s is no registration of a reader and holds nothing: %s", path, error)
            else:
                yield path, reader

    def _read(self, path: Path) -> Reader:
        with self._files.open(path) as file:
            data = file.read(_FILE_BYTES_MAX + 1)
        if len(data) > _FILE_BYTES_MAX:
            raise ValueError(f"it has more than {_FILE_BYTES_MAX} bytes")
        return Reader.from_bytes(data)


class Registration:
    """A reader's own end of its registration. A context manager, which leaves at the end. Safe to share between threads.

    Without `leave` the registration holds until its lease ends: for a reader that will come back.
    """

    def __init__(self, readers: Readers, reader: Reader) -> None:
        self._readers, self._reader = readers, reader
        self._guard = threading.Lock()
        self._lost = self._failing = False

    @property
    def reader(self) -> Reader:
        """What it says of itself since it was last written."""
        return self._reader

    @property
    def lost(self) -> bool:
        """Whether another has registered under this name since, so that this one holds nothing."""
        return self._lost

    def advance(self, epoch: int) -> None:
        """Says which epoch the reader has now, and that it lives. Cheap: call it after each epoch, and while there is none.

        Written at most once a second where the epoch changes, every 5 s where it does not. Never raises for the disk: a
        registration that cannot be renewed is told of once and tried again; at worst its reader begins again from a base.
        """
        with self._guard:
            waited_ms = abs(self._readers.now_ms() - self._reader.renewed_at_ms)
            least_s = _STANDING_S if epoch == self._reader.epoch else _MOVING_S
            # The first epoch lets go of everything that an undecided reader holds.
            if self._lost or (waited_ms < least_s * 1000 and self._reader.epoch is not None):
                return
            self._renew(epoch)

    def _renew(self, epoch: int) -> None:
        before = self._reader
        now_ms = self._readers.now_ms()
        self._reader = Reader(before.name, before.kind, before.host, before.pid, before.id, epoch, now_ms)
        if self._taken_over():
            return
        try:
            self._readers.write(self._reader)
        except OSError as error:
            if not self._failing:
                logger.warning("cannot renew the registration of reader %s: %s", before.name, error)
            self._failing = True
        else:
            self._failing = False

    def _taken_over(self) -> bool:
        there = self._readers.read(self._reader.name)
        if there is not None and there.id != self._reader.id:
            self._lost = True
            logger.warning(
                "pid %d on %s has registered as reader %s since: nothing is kept for this one any more; give each a "
                "name of its own",
                there.pid,
                there.host,
                there.name,
            )
        return self._lost

    def leave(self) -> None:
        """Removes the registration, unless another has it by now. Safe to call twice; never raises for the disk."""
        with self._guard, suppress(OSError):
            if not self._lost and not self._taken_over():
                self._lost = True
                self._readers.remove(self._reader.name)

    def __enter__(self) -> Registration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()
