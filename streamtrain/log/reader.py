"""Reading an epoch log on a file system, with every check. `epoch_log` adds the writing.

    model.json                    what the model is; written once
    epochs/<epoch>.safetensors    one record each, 20 digits
    bases/<epoch>.safetensors     the fold of everything up to an epoch
    tmp/                          files being written
    readers/                      who follows the log, and how far they are
    LOCK                          flocked by the daemon that writes

An epoch counts once its name is in a synced `epochs/`. Readers sync the directory themselves before they report a new
epoch, so none is ever acted upon that a power cut could take back.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from streamtrain.errors import CorruptRecord, EpochMissing, FormatUnknown, LogError, Superseded
from streamtrain.log import container, format
from streamtrain.log.container import Container
from streamtrain.log.files import Files, typed_errors
from streamtrain.log.model import ModelDescription
from streamtrain.log.readers import Readers, Registration
from streamtrain.log.record import EpochRecord

__all__ = ["LogReader"]

_NAME = re.compile(r"(\d{20})\.safetensors")


class LogReader:
    """One model's log, for reading; safe from any thread and beside any writer. Make one with `open`.

    Attributes:
      path: the directory.
      model: what the model is.
      readers: who follows it.
    """

    def __init__(self, path: Path, model: ModelDescription, files: Files) -> None:
        self.path, self.model, self._files = path, model, files
        self.readers = Readers(path, files)
        self._epochs, self._bases, self._tmp = path / "epochs", path / "bases", path / "tmp"
        self._guard = threading.Lock()
        self._head: int | None = None
        self._bases_seen: list[int] = []

    @classmethod
    def open(cls, path: Path | str, files: Files | None = None) -> Self:
        """Opens a log; nothing is written, so a reader needs no more than read permission.

        Raises:
          LogError: there is none, or it cannot be read.
          FormatUnknown: a newer version wrote `model.json`.
          CorruptRecord: it is damaged.
        """
        path, files = Path(path).absolute(), files or Files()
        try:
            with typed_errors("open the epoch log", path), files.open(path / "model.json") as file:
                text = file.read()
        except LogError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise LogError(
                    f"there is no epoch log in {path}: it has no model.json; check the path"
                ) from error
            raise
        return cls(path, ModelDescription.from_json(text, path / "model.json"), files)

    def register(self, name: str, epoch: int | None = None, *, kind: str = "reader") -> Registration:
        """Registers a follower of this log, so that epochs after the one that it has are not collected. See `Readers`.

        One that has nothing yet registers without an epoch, then chooses a base, opens it, and says so:

            with log.register("standby a/17", kind="standby") as registration:
                for record in recover(log):
                    ...
                    registration.advance(record.epoch)

        One that has an epoch registers with it, then reads on; `EpochMissing` means that it came too late.

        Raises:
          RegistrationRefused: this user may not write to `readers/`; reading without it stays possible.
          ValueError: the name is empty or too long.
        """
        return self.readers.register(name, epoch, kind=kind)

    def epoch_path(self, epoch: int) -> Path:
        return self._epochs / f"{epoch:020d}.safetensors"

    def base_path(self, epoch: int) -> Path:
        return self._bases / f"{epoch:020d}.safetensors"

    # What there is

    def head(self) -> int | None:
        """The newest durable epoch, whether its record or only a base is there; None of an empty log. Cheap: poll it.

        Raises:
          LogError: the directory cannot be read or synced.
        """
        with self._guard, typed_errors("read the epoch log", self.path):
            found = self._probe()
            if found != self._head:
                self._files.sync_directory(self._epochs)
                self._head = found
            return found

    def _probe(self) -> int | None:
        # New epochs follow the last one known, unless so many were written since that those were collected.
        bases = self._durable_bases()
        head = self._head
        if head is None or (bases and bases[-1] > head):
            return max([*self._numbers(self._epochs)[-1:], *bases[-1:]], default=None)
        while self._files.exists(self.epoch_path(head + 1)):
            head += 1
        return head

    def epochs(self) -> list[int]:
        """The epochs whose records are there, ascending and without a gap up to the newest."""
        with typed_errors("read the epoch log", self.path):
            numbers = self._numbers(self._epochs)
        start = len(numbers) - 1
        while start > 0 and numbers[start - 1] == numbers[start] - 1:
            start -= 1
        return numbers[max(start, 0) :]

    def bases(self) -> list[int]:
        """The epochs of which there is a durable base, ascending."""
        with self._guard, typed_errors("read the epoch log", self.path):
            return self._durable_bases()

    def _durable_bases(self) -> list[int]:
        """Bases, synced before they are told of: a power cut must not take back what a store was loaded with."""
        found = self._numbers(self._bases)
        if not set(found) <= set(self._bases_seen):
            self._files.sync_directory(self._bases)
        self._bases_seen = found
        return found

    def _numbers(self, directory: Path) -> list[int]:
        try:
            names = self._files.names(directory)
        except FileNotFoundError:
            if directory != self._bases:
                raise
            names = []  # A copy of a log without bases, by a tool that takes no empty directories along.
        return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))

    def base_bytes(self, epoch: int) -> int:
        """The size of a base's file; 0 where there is none."""
        return _size(self.base_path(epoch))

    def epochs_bytes(self, epochs: Iterable[int]) -> int:
        """The sizes of these epochs' files; those that are not there count nothing."""
        return sum(_size(self.epoch_path(epoch)) for epoch in epochs)

    # Reading

    def read(self, epoch: int, *, chained: bool = True) -> EpochRecord:
        """Reads an epoch's record and checks its digest, contents, and that it follows the one before it.

        The arrays are read-only views of the mapped file: what is not touched is not loaded.

        Args:
          chained: False leaves the one before it out: it is damaged itself, and has been told of.

        Raises:
          EpochMissing: not written yet, or collected.
          Superseded: it never was one of this log's epochs; a newer base stands for it.
          FormatUnknown: a newer version wrote it.
          CorruptRecord: naming the file and the remedy.
          LogError: it cannot be read.
        """
        record = self._read(epoch, "epoch")
        if any(base >= epoch for base in self.bases()):
            # Old names are free again once they are collected: what counts is whom the epochs since follow.
            if not self._followed(epoch):
                if not self._exists(self.epoch_path(epoch)):
                    raise self._missing(epoch, "epoch")
                raise Superseded(
                    f"{self.epoch_path(epoch)}: what comes after it does not follow it: the chain is broken. "
                    f"{self.remedy('epoch', epoch)}"
                )
        elif chained and record.previous != (self._digest_before(epoch) or record.previous):
            raise self._corrupt("epoch", epoch, "it does not follow the epoch before it: the chain is broken")
        return record

    def read_base(self, epoch: int) -> EpochRecord:
        """Reads the base of an epoch. Checks and raises as `read`."""
        record = self._read(epoch, "base")
        if self._exists(self.epoch_path(epoch)) and record.previous != self.digest(epoch):
            raise self._corrupt("base", epoch, f"it is not the base of the epoch {epoch} that is here")
        return record

    def digest(self, epoch: int) -> str:
        """The digest of an epoch's record, as its file or its base claims it.

        Raises: as `read`.
        """
        with typed_errors("read", self.epoch_path(epoch)):
            try:
                return container.read_digest(self.epoch_path(epoch), self._files)
            except FileNotFoundError:
                pass
        return str(self._open(epoch, "base", check=False).document["previous"])

    def describe(self, epoch: int) -> EpochRecord:
        """The record of an epoch or, where only that is there, its base; without reading what it does not touch.

        Nothing but the header's shape is checked: for looking at many epochs quickly.

        Raises: as `read`.
        """
        return self._read(epoch, "epoch" if self._exists(self.epoch_path(epoch)) else "base", check=False)

    def describe_base(self, epoch: int) -> EpochRecord:
        """As `describe`, of a base."""
        return self._read(epoch, "base", check=False)

    def base_digest(self, epoch: int) -> str:
        """The digest of a base's own file, as it claims it. Raises as `read`."""
        return self._open(epoch, "base", check=False).digest

    def _followed(self, epoch: int) -> bool:
        """Whether the next epoch follows this one, which is not newer than the newest base; at the base's own, whether it is its."""
        try:
            if self._exists(self.epoch_path(epoch + 1)):
                follower = self._read(epoch + 1, "epoch", check=False)
            else:
                follower = self._read(epoch, "base", check=False)
        except EpochMissing:
            return False
        except CorruptRecord:
            return True  # not to be told of this epoch, but of that file when it is read
        return follower.previous == self.digest(epoch)

    def _digest_before(self, epoch: int) -> str | None:
        """What `previous` must be; None where the epoch before is gone."""
        if epoch == 0:
            return ""
        try:
            return self.digest(epoch - 1)
        except EpochMissing:
            return None

    def _read(self, epoch: int, kind: format.Kind, *, check: bool = True) -> EpochRecord:
        file = self._open(epoch, kind, check=check)
        if strange := format.unknown(file.document, file.tensors):
            raise FormatUnknown(self._path(kind, epoch), strange)
        try:
            record = format.decode(file.document, file.tensors)
        except (KeyError, TypeError, ValueError) as error:
            raise self._corrupt(kind, epoch, f"its contents make no record ({error})") from error
        if (record.epoch, file.document["kind"]) != (epoch, kind):
            raise self._corrupt(kind, epoch, f"it holds {file.document['kind']} {record.epoch}")
        if (owner := file.document["model_id"]) != self.model.model_id:
            raise self._corrupt(kind, epoch, f"it belongs to model {owner}, not to {self.model.model_id}")
        return record

    def _open(self, epoch: int, kind: format.Kind, *, check: bool) -> Container:
        path = self._path(kind, epoch)
        with typed_errors("read", path):
            try:
                return Container(path, self._files, check=check)
            except FileNotFoundError:
                raise self._missing(epoch, kind) from None
            except CorruptRecord as error:
                raise self._corrupt(kind, epoch, str(error).removeprefix(f"{path}: ")) from error

    def _path(self, kind: format.Kind, epoch: int) -> Path:
        return self.epoch_path(epoch) if kind == "epoch" else self.base_path(epoch)

    def _exists(self, path: Path) -> bool:
        with typed_errors("read", path):
            return self._files.exists(path)

    def _missing(self, epoch: int, kind: format.Kind) -> EpochMissing:
        epochs, bases = self.epochs(), self.bases()
        kept = f"epochs {epochs[0]} to {epochs[-1]}" if epochs else "no epochs"
        found = (
            f"{self.path} has no {kind} {epoch}; it has {kept}, bases: {', '.join(map(str, bases)) or 'none'}"
        )
        if kind == "epoch" and epochs and epoch < epochs[-1] and not any(base >= epoch for base in bases):
            # Collecting removes no epoch that no base stands for.
            back = f", or move all newer epochs away to go back to epoch {epoch - 1}" if epoch else ""
            found += f". It was removed: restore it from a backup{back}"
        return EpochMissing(found)

    def _corrupt(self, kind: format.Kind, epoch: int, what: str) -> CorruptRecord:
        return CorruptRecord(f"{self._path(kind, epoch)}: {what}. {self.remedy(kind, epoch)}")

    def remedy(self, kind: format.Kind, epoch: int) -> str:
        """What a person does about a damaged file."""
        epochs, bases = self.epochs(), self.bases()
        if any(base >= epoch and (kind == "epoch" or base > epoch) for base in bases):
            return "A newer base holds what it learned: move it away, with all older files"
        if kind == "base":
            older = max((base for base in bases if base < epoch), default=-1)
            if epochs and epochs[0] <= older + 1:
                return f"Move it away: {f'base {older}' if older >= 0 else 'epoch 0'} and the epochs since rebuild it"
            return "Restore it from a backup: the epochs that it was folded from are collected"
        if epoch == max(epochs, default=epoch):
            return (
                "It is the newest: move it away to go back one epoch, whose samples are then learned again. "
                "A store or an export that has it already must be emptied: it refills from the log"
            )
        return (
            f"Restore it from a backup, or move it and all newer epochs away to go back to epoch {epoch - 1}"
        )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
