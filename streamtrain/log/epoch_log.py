"""The epoch log on a file system: append by compare-and-swap, one writer at a time. The one commit point."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from streamtrain.errors import CorruptRecord, EpochMissing, Fenced, LogError
from streamtrain.log import container, format
from streamtrain.log.container import Stream
from streamtrain.log.files import Aside, Files, clean_asides, typed_errors
from streamtrain.log.lock_file import LockFile, LockHeld
from streamtrain.log.model import ModelDescription
from streamtrain.log.reader import LogReader
from streamtrain.log.readers import READERS, Holding
from streamtrain.log.record import EpochRecord

__all__ = ["EpochLog"]

logger = logging.getLogger(__name__)

_HOLDING = Holding()


class EpochLog(LogReader):
    """One model's log. Reading is safe from any thread and process; `append` is for one thread of one process.

    Make one with `create`, `open` or `open_or_create`.
    """

    def __init__(self, path: Path, model: ModelDescription, files: Files) -> None:
        super().__init__(path, model, files)
        self._tail: tuple[int, str] | None = None

    @classmethod
    def create(
        cls,
        path: Path | str,
        name: str,
        job: Mapping[str, Any],
        files: Files | None = None,
        migrated: Sequence[Mapping[str, Any]] = (),
    ) -> EpochLog:
        """Makes the directory and its `model.json`, with a new model id. Empty until epoch 0 is appended.

        Args:
          name: the model's name, for people.
          job: the resolved description of the job, JSON values, no secrets.
          migrated: see `ModelDescription`.

        Raises:
          LogError: there is a log already, or the directory cannot be written.
        """
        path, files = Path(path).absolute(), files or Files()
        model = ModelDescription.new(name, job, migrated)
        with typed_errors("create the epoch log", path):
            for directory in (path, path / "epochs", path / "bases", path / "tmp", path / READERS):
                files.make_directory(directory)
            with Aside(files, path / "tmp", "model.json") as aside:
                aside.write(model.to_json())
                try:
                    aside.link(path / "model.json")
                except FileExistsError as error:
                    raise LogError(
                        f"{path} holds an epoch log already; open it, or choose another directory"
                    ) from error
            files.sync_directory(path)
            files.sync_directory(path.parent)
        return cls(path, model, files)

    @classmethod
    def open_or_create(
        cls, path: Path | str, name: str, job: Mapping[str, Any], files: Files | None = None
    ) -> EpochLog:
        """Opens the log, or creates it where `model.json` is missing; another process may do so at the same time.

        Raises: as `create` and `open`.
        """
        if not (Path(path) / "model.json").exists():
            try:
                return cls.create(path, name, job, files)
            except LogError as error:
                if not isinstance(error.__cause__, FileExistsError):
                    raise
        return cls.open(path, files)

    @contextmanager
    def lock(self, *, takeover: bool = False) -> Iterator[None]:
        """Holds the log for writing, so that a second daemon is told at once; tidies up behind dead writers.

        What they left in `tmp/` is removed, and an epoch whose end the power took is moved aside.

        A courtesy: the fence is `append` itself.

        Args:
          takeover: the holder, if there is one, was found dead or paused: the lock is taken from it.

        Raises:
          Fenced: naming the process that holds it.
          LogError: the lock file cannot be written.
        """
        path = self.path / "LOCK"
        with typed_errors("lock", path):
            try:
                lock, replaced = LockFile.take(path, replace=takeover)
            except LockHeld as holder:
                raise Fenced(
                    f"another daemon ({holder}) writes the log {self.path}; stop it, or give this one a directory of "
                    "its own"
                ) from None
        try:
            if replaced:
                logger.warning(
                    "took the lock of %s from %s, which is paused or cut off: what it appends from now on is fenced",
                    self.path,
                    replaced,
                )
            with typed_errors("lock", path):
                # A copy may lack directories that were empty: not every tool takes them along.
                for directory in (self._tmp, self._bases):
                    self._files.make_directory(directory)
                clean_asides(self._files, self._tmp)
                self._repair_tail()
            yield
        finally:
            lock.close()

    def _repair_tail(self) -> None:
        """Moves a newest epoch that was never written to its end aside, into `damaged/`.

        A disk that keeps what it has acknowledged leaves none: the file was synced before it got its name. One that lies
        may lose the end of the file and keep the name when the power goes. Whatever else is wrong with a file, or
        with one that is not the newest, is damage: it is never repaired, only told.
        """
        epochs = self._numbers(self._epochs)
        bases = self._numbers(self._bases)
        if not epochs or (bases and bases[-1] >= epochs[-1]):
            return
        last = epochs[-1]
        path = self.epoch_path(last)
        if (reason := container.torn(path, self._files)) is None:
            return
        before = [self.epoch_path(last - 1)] if last - 1 in epochs else []
        before += [self.base_path(last - 1)] if last - 1 in bases else []
        if all(container.torn(file, self._files) for file in before):
            return  # nothing sound to go on from
        target = self.path / "damaged" / f"{path.stem}.{secrets.token_hex(4)}"
        self._files.make_directory(target.parent)
        self._files.rename(path, target)
        self._files.sync_directory(target.parent)
        self._files.sync_directory(self._epochs)
        self._head = None
        logger.warning(
            "epoch %d was lost with the power: %s. It is moved to %s, and what it had learned is learned again",
            last,
            reason,
            target,
        )

    def continue_from(self, epoch: int) -> str:
        """The digest of the epoch that this writer has: the `previous` of the one that it appends next.

        Raises:
          Fenced: another writer has gone far beyond it, and has collected it.
          LogError: it cannot be read.
        """
        try:
            return self.digest(epoch)
        except EpochMissing:
            raise self._left_behind(epoch) from None

    def append(self, record: EpochRecord) -> str:
        """Makes the next epoch durable: the only commit point there is.

        Appending the very same record again after an error is safe: where it is in place already, that is success.

        Returns:
          Its digest: the `previous` of the next.

        Raises:
          Fenced: another writer has this epoch, or has left it far behind. Nothing of this record was committed.
          LogFull: no room; nothing was changed; try again when there is.
          LogError: any other failure of the disk. Whether the epoch is durable is open: stop, and recover from what is there.
          ValueError: the record contradicts itself or skips an epoch: a mistake of the caller.
        """
        target = self.epoch_path(record.epoch)
        self._check_follows(record)
        with typed_errors("append", target), Aside(self._files, self._tmp, target.name) as aside:
            digest = container.write(
                format.document(record, "epoch", self.model.model_id), format.tensors(record), aside
            )
            self._refuse_if_overtaken(record.epoch)
            self._link(aside, target, digest)
        self._settle(target, record.epoch, digest)
        self._tail = record.epoch, digest
        return digest

    def add_base(self, record: EpochRecord, rows: Mapping[str, np.ndarray | Stream]) -> None:
        """Puts a base in place; where that epoch has one already, nothing is changed. `fold` calls it.

        Args:
          record: all but the rows; `previous` is the digest of its epoch.
          rows: the tensors of the rows by their names in the file.

        Raises:
          LogFull, LogError: it cannot be written; nothing was changed.
        """
        target = self.base_path(record.epoch)
        with typed_errors("write", target), Aside(self._files, self._tmp, f"base.{target.name}") as aside:
            document = format.document(record, "base", self.model.model_id)
            container.write(document, format.tensors(record) | dict(rows), aside)
            with suppress(FileExistsError):
                aside.link(target)
            self._files.sync_directory(self._bases)

    def collect(self, keep_epochs: int, protect: Iterable[int] = (), holding: Holding = _HOLDING) -> int:
        """Removes what neither recovery nor a registered reader needs: old epochs, and all bases but the newest two.

        Oldest first, so that a crash in between leaves no gap. Without a base nothing is removed.

        Args:
          keep_epochs: >= 1; epochs up to this many before the newest base go.
          protect: epochs that views stand at: those after the oldest of them stay, however old.
          holding: how long, and how far back, registered readers hold what follows theirs.

        Returns:
          How many files were removed.

        Raises:
          LogError: a file cannot be removed.
        """
        assert keep_epochs >= 1
        with typed_errors("collect the epoch log", self.path):
            bases = self._numbers(self._bases)
            if not bases:
                return 0
            epochs = self._numbers(self._epochs)
            # Asked last: who registers after this chooses among bases no older than the newest here, which stays.
            held = self.readers.held(bases[-1], holding)
            if None in held:
                return 0
            bound = min([bases[-1] - keep_epochs, *protect, *(epoch for epoch in held if epoch is not None)])
            old = [self.epoch_path(epoch) for epoch in epochs if epoch <= bound]
            old += [self.base_path(base) for base in bases[:-2]]
            for path in old:
                with suppress(FileNotFoundError):
                    self._files.unlink(path)
            return len(old)

    def _check_follows(self, record: EpochRecord) -> None:
        head = self.head()
        if self._tail is None or self._tail[0] != head:
            try:
                self._tail = None if head is None else (head, self.digest(head))
            except EpochMissing:
                # It was the head a moment ago, before this writer was paused.
                raise self._left_behind(head) from None
        number, digest = self._tail or (-1, "")
        if record.epoch > number + 1:
            raise ValueError(f"epoch {record.epoch} cannot follow epoch {number}: one is missing in between")
        if record.epoch == number + 1 and record.previous != digest:
            raise Fenced(
                f"epoch {number} of {self.path} is not the one that this writer continues: another wrote it; stop this one"
            )
        if record.epoch < number:
            raise self._fenced(record.epoch, number)

    def _refuse_if_overtaken(self, epoch: int) -> None:
        # A writer paused for long may find its epoch's name free: written by another, folded into a base, collected.
        if newer := [base for base in self.bases() if base >= epoch]:
            raise self._fenced(epoch, newer[-1])

    def _link(self, aside: Aside, target: Path, digest: str) -> None:
        try:
            aside.link(target)
        except FileExistsError:
            # The same bytes are this very record, of an attempt whose answer was lost.
            if container.read_digest(target, self._files) != digest:
                raise self._fenced(int(target.stem), int(target.stem)) from None
        except FileNotFoundError:
            # Who takes the lock removes what dead writers left: a writer that was paused for so long looks dead.
            if aside.path.exists() or not target.parent.exists():
                raise
            raise Fenced(
                f"another daemon took the log {self.path} over and removed what this one was writing; epoch "
                f"{int(target.stem)} of this one was not committed: stop it, the other one goes on"
            ) from None

    def _settle(self, target: Path, epoch: int, digest: str) -> None:
        """What follows the link. From here on a failure leaves open whether the epoch is durable: never LogFull."""
        try:
            try:
                self._refuse_if_overtaken(epoch)
            except Fenced:
                # Overtaken only after the link: then the record is a part of the history that went on.
                if not self._continued(epoch, digest):
                    self._take_back(target, epoch)
                    raise
            self._files.sync_directory(self._epochs)
        except OSError as error:
            raise LogError(
                f"cannot sync {self._epochs}: {error.strerror or error}; epoch {epoch} may or may not be durable: restart, recovery finds out"
            ) from error
        with self._guard:
            self._head = max(epoch, -1 if self._head is None else self._head)

    def _take_back(self, target: Path, epoch: int) -> None:
        try:
            self._files.unlink(target)
        except FileNotFoundError:
            raise self._left_behind(epoch) from None
        # Else a power cut could bring the name back, below a gap.
        self._files.sync_directory(self._epochs)

    def _left_behind(self, epoch: int | None) -> Fenced:
        return Fenced(
            f"another writer has gone far beyond epoch {epoch} of {self.path}, and has collected it: stop this one, "
            "the other one goes on"
        )

    def _continued(self, epoch: int, digest: str) -> bool:
        """Whether the log went on from this very record: the next epoch follows it, or its base was folded from it."""
        with suppress(EpochMissing):
            if self._read(epoch + 1, "epoch", check=False).previous == digest:
                return True
        with suppress(EpochMissing):
            return self.describe_base(epoch).previous == digest
        return False

    def _fenced(self, epoch: int, newer: int) -> Fenced:
        try:
            writer = self.describe(newer).writer or "unknown"
        except (EpochMissing, CorruptRecord):
            writer = "unknown"
        return Fenced(
            f"another writer ({writer}) has appended epoch {newer} to {self.path}; "
            f"epoch {epoch} of this one was not committed: stop it, the other one goes on"
        )
