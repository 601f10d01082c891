"""`manifest.json` of an export directory: the bases and the chain of deltas that a follower may rely on.

The exporter replaces it atomically after the files that it names are durable, and removes files only after the
manifest that no longer names them is. So what the newest manifest names is there and whole; a follower that
holds an older manifest may find a file gone, and reads the manifest again.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from streamtrain.errors import DeltaGap, ExportError
from streamtrain.log.sealed import seal, unseal
from streamtrain.serving.model import FORMAT_VERSION

__all__ = ["BASES", "DELTAS", "MANIFEST", "MODEL", "PACKED_VERSION", "Entry", "Manifest", "Position"]

MANIFEST, MODEL, BASES, DELTAS = "manifest.json", "model.json", "bases", "deltas"
PACKED_VERSION = 2
"""Of the format: what a manifest says that names a compressed file, which followers of version 1 have to refuse."""
SUFFIX = ".zst"


class Position(NamedTuple):
    """A point in the history of a model: an epoch, and the hex digest of its record in the log.

    The digest tells apart two epochs of one number, which there are when a log was set back and went on.
    """

    epoch: int
    digest: str

    def __str__(self) -> str:
        return f"epoch {self.epoch} ({self.digest[:12]})"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of an export.

    Attributes:
      epoch, version: the position that a follower holds after it has applied the file.
      previous: of a delta, the `version` that it follows (its epoch is one less); of a base, "".
      digest: hex SHA-256 of the file, unpacked; the file states it too.
      size_bytes: of the file as it stands there.
      committed_at_ms: when the trainer committed the epoch, by its wall clock.
      exported_at_ms: when the exporter wrote the file, by its wall clock.
      unpacked_bytes: of a file that is compressed (`packed.py`), the size of what `digest` is of; else 0.
    """

    epoch: int
    version: str
    previous: str
    digest: str
    size_bytes: int
    committed_at_ms: int
    exported_at_ms: int
    unpacked_bytes: int = 0

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.version)

    @property
    def name(self) -> str:
        """The path inside the export directory."""
        folder, suffix = DELTAS if self.previous else BASES, SUFFIX if self.unpacked_bytes else ""
        return f"{folder}/{self.epoch:020d}.safetensors{suffix}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an export directory holds.

    Attributes:
      model_id: whose weights these are.
      bases: one or more, oldest first.
      deltas: every epoch after the oldest base, without a gap, oldest first.
    """

    model_id: str
    bases: tuple[Entry, ...]
    deltas: tuple[Entry, ...]

    @property
    def head(self) -> Position:
        """The newest version."""
        return self.deltas[-1].position if self.deltas else self.bases[-1].position

    @property
    def names(self) -> list[str]:
        """The paths of all files, relative to the export directory."""
        return [entry.name for entry in (*self.bases, *self.deltas)]

    def with_delta(self, delta: Entry) -> Manifest:
        """With one delta more, which follows the head."""
        return Manifest(self.model_id, self.bases, (*self.deltas, delta))

    def with_base(self, base: Entry, keep: int, held: int | None = None) -> Manifest:
        """With one base more, of a version of the chain, and without all but the newest `keep` bases.

        The deltas go that lead up to the oldest base.

        Args:
          held: the epoch of a version from which the deltas must still lead on. Where they would not, one older base stays,
            because a chain begins with a base; those between go.
        """
        bases = (*self.bases, base)[-keep:]
        if held is not None and held < bases[0].epoch:
            bases = (*[older for older in self.bases if older.epoch <= held][-1:], *bases)
        deltas = (delta for delta in self.deltas if delta.epoch > bases[0].epoch)
        return Manifest(self.model_id, bases, tuple(deltas))

    def after(self, held: Position) -> tuple[Entry, ...]:
        """The deltas that lead from `held` to the head.

        Raises:
          DeltaGap: no chain does: `held` is too old, or of a history that was given up.
        """
        if not any(entry.position == held for entry in (*self.deltas, *self.bases)):
            raise DeltaGap(f"no chain of deltas leads from {held} to {self.head}")
        return tuple(delta for delta in self.deltas if delta.epoch > held.epoch)

    def next_file(self, held: Position | None, refused: Container[Entry] = ()) -> Entry | None:
        """Decides which file takes a follower forward.

        The next delta, where it is sound. Else, and for a follower that holds nothing, the newest sound base.

        Args:
          held: the follower's version.
          refused: files found damaged or gone.

        Returns:
          None when the follower is at the head, or nothing that leads forward is sound.

        Raises:
          DeltaGap: see `after`.
          ExportError: the export stands before what is held. It is being written anew, and will catch up.
        """
        if held is not None and held.epoch > self.head.epoch:
            raise ExportError(
                f"the export stands at {self.head}, before {held}, which stays in service meanwhile"
            )
        deltas = () if held is None else self.after(held)
        if held is not None and (not deltas or deltas[0] not in refused):
            return deltas[0] if deltas else None
        oldest = -1 if held is None else held.epoch + 1
        sound = (base for base in reversed(self.bases) if base.epoch >= oldest and base not in refused)
        return next(sound, None)

    def check(self) -> None:
        """Refuses a manifest whose chain has a gap.

        Raises:
          ExportError: it names what does not follow.
        """
        if not self.bases:
            raise ExportError("it names no base")
        if any(base.previous for base in self.bases):
            raise ExportError("a base follows nothing")
        held = self.bases[0].position
        chain = {held}
        for delta in self.deltas:
            if (delta.epoch, delta.previous) != (held.epoch + 1, held.digest):
                raise ExportError(f"delta {delta.epoch} does not follow {held}")
            held = delta.position
            chain.add(held)
        if strays := [base.epoch for base in self.bases if base.position not in chain]:
            raise ExportError(f"base {strays[0]} is not a version of the chain")

    def to_bytes(self) -> bytes:
        """The file's content."""
        packed = any(entry.unpacked_bytes for entry in (*self.bases, *self.deltas))
        document = {
            "format": "streamtrain-export",
            "format_version": PACKED_VERSION if packed else FORMAT_VERSION,
            "model_id": self.model_id,
            "head": self.head._asdict(),
            "bases": [_to_json(entry) for entry in self.bases],
            "deltas": [_to_json(entry) for entry in self.deltas],
        }
        return seal(document)

    @staticmethod
    def read(path: Path) -> Manifest:
        """Reads and checks `manifest.json`.

        Raises:
          FileNotFoundError: nothing was exported there yet.
          ExportError: it is damaged, contradicts itself, or is of another version of the format.
        """
        data = path.read_bytes()
        try:
            document = unseal(data)
            if document["format"] != "streamtrain-export":
                raise ExportError(f"its format is {document['format']!r}, not 'streamtrain-export'")
            version = document["format_version"]
            manifest = Manifest._of(document) if version in (FORMAT_VERSION, PACKED_VERSION) else None
        except (KeyError, TypeError, ValueError, ExportError) as error:
            raise ExportError(
                f"{path} is not a manifest that can be used: {error!s}; "
                "remove the directory's content, and the exporter writes it anew from the log"
            ) from error
        if manifest is None:
            raise ExportError(
                f"{path} has version {version!r} of the format, this version of streamtrain reads up to {PACKED_VERSION}: "
                "upgrade what reads it, followers before the trainer"
            )
        return manifest

    @staticmethod
    def _of(document: dict[str, Any]) -> Manifest:
        manifest = Manifest(
            str(document["model_id"]),
            tuple(_from_json(entry) for entry in document["bases"]),
            tuple(_from_json(entry) for entry in document["deltas"]),
        )
        manifest.check()
        return manifest


_ENTRY_KEYS = [field.name for field in fields(Entry)]


def _to_json(entry: Entry) -> dict[str, Any]:
    found = {"name": entry.name, **{name: getattr(entry, name) for name in _ENTRY_KEYS}}
    if not entry.unpacked_bytes:
        del found["unpacked_bytes"]
    return found


def _from_json(entry: dict[str, Any]) -> Entry:
    return Entry(
        int(entry["epoch"]),
        str(entry["version"]),
        str(entry["previous"]),
        str(entry["digest"]),
        int(entry["size_bytes"]),
        int(entry["committed_at_ms"]),
        int(entry["exported_at_ms"]),
        int(entry.get("unpacked_bytes", 0)),
    )
