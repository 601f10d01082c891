"""The durable side of a delta export: files written aside, synced, renamed; the manifest last."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from streamtrain.errors import ExportError
from streamtrain.log.container import Stream, write
from streamtrain.log.files import Aside, Files, clean_asides
from streamtrain.log.lock_file import LockFile, LockHeld
from streamtrain.log.readers import READERS
from streamtrain.serving.manifest import BASES, DELTAS, MANIFEST, MODEL, Entry, Manifest
from streamtrain.serving.model import ServedModel
from streamtrain.serving.packed import Packer

__all__ = ["ExportDirectory"]

_LOG = logging.getLogger(__name__)


class _Replacing(Aside):
    """A file aside that may take the name of another one."""

    def __init__(self, files: Files, directory: Path, name: str) -> None:
        super().__init__(files, directory, name)
        self._replacing = files
        self.size_bytes = 0

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def write(self, data: bytes | memoryview) -> None:
        super().write(data)
        self.size_bytes += len(data)

    def replace(self, target: Path) -> None:
        """Syncs the content, the name and the directory that holds it."""
        assert self._descriptor is not None
        self._replacing.sync(self._descriptor)
        self._replacing.replace(self.path, target)
        self._replacing.sync_directory(target.parent)


class ExportDirectory:
    """An export directory, held by this process alone until `close`.

    Args:
      path: made where it is not there.
      files: the calls that reach the disk.
      model: what is exported into it.
      takeover: see `streamtrain.exports.Exporter`.

    Attributes:
      path: the directory.
      aside: where in it files are written, and those without a name stand.

    Raises:
      ExportError: another process exports into it, it is another model's, or it cannot be written.
    """

    def __init__(self, path: Path, files: Files, model: ServedModel, *, takeover: bool = False) -> None:
        self.path = path
        self._files = files
        self.aside = path / "tmp"
        with self.typed("set up"):
            for directory in (path, self.aside, path / BASES, path / DELTAS, path / READERS):
                files.make_directory(directory)
            # Before its lock may be taken from a daemon of another model, which would have to be started again.
            self._found(model)
            try:
                lock, replaced = LockFile.take(path / "LOCK", replace=takeover)
            except LockHeld as holder:
                raise ExportError(
                    f"another process exports into {path} ({holder}); give each daemon a path of its own"
                ) from None
            self._lock: LockFile | None = lock
            if replaced:
                _LOG.warning("took the lock of %s from %s, which is paused or cut off", path, replaced)
            clean_asides(files, self.aside)

    def close(self) -> None:
        """Lets others export into the directory. Safe to call twice."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()

    def describe(self, model: ServedModel) -> None:
        """Writes `model.json`, unless the directory is that of a model that this one was migrated from: see `succeed`.

        Raises:
          ExportError: the directory is another model's.
        """
        found = self._found(model)
        if found is None:
            self._write(MODEL, model.to_bytes())
        elif found.model_id == model.model_id:
            self.succeed(model)

    def _found(self, model: ServedModel) -> ServedModel | None:
        """Whose directory it is: this model's or that of one before it; None of a new one."""
        path = self.path / MODEL
        if not self._files.exists(path):
            return None
        found = ServedModel.read(path)
        if found.model_id not in (model.model_id, *model.migrated):
            raise ExportError(
                f"{self.path} holds the export of model {found.name!r} ({found.model_id}), not of "
                f"{model.name!r} ({model.model_id}); set another path, or remove that directory"
            )
        return found

    def succeed(self, model: ServedModel) -> None:
        """Writes `model.json` where it is still that of a model before. Its first manifest follows.

        In between, who begins to follow finds a description and a manifest that do not belong together, and looks again.
        """
        content = model.to_bytes()
        if (self.path / MODEL).read_bytes() != content:
            self._write(MODEL, content)

    def manifest(self) -> Manifest | None:
        """The manifest, where there is one and the files that it names are there.

        Raises:
          ExportError: it is damaged, or names a file that is gone or of another size.
        """
        try:
            manifest = Manifest.read(self.path / MANIFEST)
        except FileNotFoundError:
            return None
        for entry in (*manifest.bases, *manifest.deltas):
            path = self.path / entry.name
            if not path.exists() or path.stat().st_size != entry.size_bytes:
                raise ExportError(f"{path} is not there as the manifest says")
        return manifest

    def write_file(
        self,
        entry: Entry,
        document: Mapping[str, Any],
        tensors: Mapping[str, np.ndarray | Stream],
        *,
        packed: bool = False,
    ) -> Entry:
        """Writes a delta or base and makes it durable. Nothing refers to it yet.

        Args:
          packed: compresses it, for which it is held in memory whole.

        Returns:
          `entry` with the file's digest and size.
        """
        self._check_held()
        if packed:
            packer = Packer()
            digest = write(document, tensors, packer)
            frame, entry = packer.packed(), replace(entry, digest=digest, unpacked_bytes=len(packer))
            self._write(entry.name, frame)
            return replace(entry, size_bytes=len(frame))
        target = self.path / entry.name
        with (
            self.typed(f"write {entry.name} of"),
            _Replacing(self._files, self.aside, target.name) as aside,
        ):
            digest = write(document, tensors, aside)
            aside.replace(target)
        return replace(entry, digest=digest, size_bytes=aside.size_bytes)

    def publish(self, manifest: Manifest) -> None:
        """Makes `manifest` the one that followers see. The files that it names are durable already."""
        manifest.check()
        self._write(MANIFEST, manifest.to_bytes())

    def _check_held(self) -> None:
        """An exporter that was paused until another took the directory over must not undo what that one publishes."""
        if self._lock is not None and not self._lock.held:
            raise ExportError(f"another process has taken the export to {self.path} over")

    def _write(self, name: str, content: bytes | memoryview) -> None:
        self._check_held()
        target = self.path / name
        with self.typed(f"write {name} of"), _Replacing(self._files, self.aside, target.name) as aside:
            aside.write(content)
            aside.replace(target)

    def remove(self, names: Iterable[str]) -> None:
        """Removes files that the published manifest does not name; what cannot be removed is logged, and stays."""
        self._check_held()
        for name in sorted(names):
            try:
                self._files.unlink(self.path / name)
            except OSError as error:
                _LOG.warning("cannot remove %s from %s: %s", name, self.path, error)

    def remove_orphans(self, manifest: Manifest | None) -> None:
        """Removes every delta and base that the published manifest does not name: what a crash left."""
        named = set() if manifest is None else set(manifest.names)
        with self.typed("list"):
            there = [
                f"{folder}/{name}"
                for folder in (DELTAS, BASES)
                for name in self._files.names(self.path / folder)
            ]
        self.remove(set(there) - named)

    @contextmanager
    def typed(self, doing: str) -> Iterator[None]:
        """Makes what the disk refuses an ExportError that says what was being done to this directory, and what to do."""
        try:
            yield
        except OSError as error:
            raise ExportError(
                f"cannot {doing} {self.path}: {error.strerror or error}; training goes on, and the export is "
                "tried again: check space, quota, owner and mount of that directory"
            ) from error
