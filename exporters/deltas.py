"""Exports committed epochs as weight-only deltas and periodic bases, for followers (`docs/serving.md`).

Each epoch becomes one file of the rows it changed, so a model that learned is visible in serving a moment after
its epoch was committed, at a cost that goes with what changed and not with the size of the model. The order of
every step is what makes it safe to be killed at any instant: first the file, durable under its name; then the
manifest that names it; then the removal of what the manifest no longer names.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from exporters.delta_directory import ExportDirectory
from exporters.delta_fold import FoldStopped, fold_base, sorted_rows
from streamtrain.errors import DeltaGap, ExportError
from streamtrain.exports import ExporterSettings, Position
from streamtrain.log.container import Stream
from streamtrain.log.files import Files
from streamtrain.log.model import ModelDescription
from streamtrain.log.readers import Holding, Readers
from streamtrain.log.record import EpochRecord, TableRows
from streamtrain.serving.files import PARAMS_PREFIX, Lineage, export_document
from streamtrain.serving.manifest import Entry, Manifest
from streamtrain.serving.model import ServedModel
from streamtrain.serving.weights import Encoding, encode

__all__ = ["DeltaExporter", "DeltaSettings"]

_LOG = logging.getLogger(__name__)


class DeltaSettings(ExporterSettings):
    """Weight-only deltas and bases in a directory that followers read."""

    kind: Literal["deltas"] = "deltas"
    """This exporter."""
    path: str = Field(min_length=1)
    """Directory to export to; nothing else may write there. Followers need to read it: a local or shared disk."""
    dtype: Encoding = "float32"
    """How weights stand in the files. `bfloat16` halves them, each weight off by 2^-8 of itself at most; `int8` quarters them,
    off by 1/254 of the largest weight of its row at most. Learning is exact all the same. Each file says which it is; a
    follower older than this setting refuses those that are not float32."""
    compression: Literal["none", "zstd"] = "none"
    """`zstd` makes deltas smaller, by a tenth or so: most of a weight is noise to it, `dtype` does more. Bases are not compressed,
    because followers map them. Followers older than this setting refuse the export."""
    base_every_epochs: int = Field(default=300, ge=1, le=100_000)
    """A full base is written after this many deltas, aside from exporting. A new follower reads the newest base and
    the deltas since."""
    keep_bases: int = Field(default=2, ge=1, le=100)
    """Bases to keep, with all deltas since the oldest of them. A follower further behind loads a base instead, unless it
    is registered."""
    reader_lease_s: float = Field(default=600.0, ge=15.0, le=604_800.0)
    """Deltas stay while a registered follower still needs them (`streamtrain follow --register`). One that has been silent
    for longer than this holds nothing any more."""
    hold_epochs_max: int = Field(default=86_400, ge=1, le=100_000_000)
    """How far behind the newest base a registered follower may fall. Beyond, a warning names it, the deltas go, and it loads
    a base: one that never catches up must not fill the disk."""


class DeltaExporter:
    """Writes an export directory. See `streamtrain.exports.Exporter` for the contract.

    Args:
      settings: where, and how often bases.
      model: the log's; becomes the directory's `model.json`.
      files: the calls that reach the disk.
      clock: seconds since 1970.
      takeover: see `streamtrain.exports.Exporter`.

    Raises:
      ExportError: the directory belongs to another model or process, or cannot be written.
    """

    Settings = DeltaSettings

    def __init__(
        self,
        settings: DeltaSettings,
        model: ModelDescription,
        files: Files | None = None,
        clock: Callable[[], float] = time.time,
        *,
        takeover: bool = False,
    ) -> None:
        self._settings = settings
        self._clock = clock
        migrated = [before["model_id"] for before in model.migrated]
        self._model = ServedModel.of_job(model.model_id, model.name, model.job, migrated)
        self._guard = threading.Lock()
        self._stopping = threading.Event()
        self._folding: Future[Entry] | None = None
        self._fold_unwanted = threading.Event()
        self._fold_after = 0
        self._damage: str | None = None
        files = files or Files()
        self._directory = ExportDirectory(Path(settings.path), files, self._model, takeover=takeover)
        self._readers = Readers(Path(settings.path), files, clock)
        self._folder = ThreadPoolExecutor(1, f"fold {settings.path}")
        try:
            self._directory.describe(self._model)
            self._manifest = self._resume()
            if self._manifest is not None:
                # What a manifest names that is not ours is served until our base takes its place.
                self._directory.remove_orphans(self._manifest)
        except BaseException:
            self.close()
            raise

    def _resume(self) -> Manifest | None:
        try:
            manifest = self._directory.manifest()
        except ExportError as error:
            # Everything here can be made again from the log, so damage costs one base and no operator.
            _LOG.warning("the export is started afresh: %s", error)
            return None
        if manifest is not None and manifest.model_id != self._model.model_id:
            _LOG.warning("the export is started afresh: its manifest is of model %s", manifest.model_id)
            return None
        return manifest

    def position(self) -> Position | None:
        """The head of the published manifest."""
        return None if self._manifest is None else self._manifest.head

    def export(self, record: EpochRecord, digest: str) -> int:
        """Writes the epoch's delta and publishes it; then also a base, when one was folded meanwhile.

        Raises:
          DeltaGap: the record does not follow what is exported.
          ExportError: a file could not be written. What is published is as it was.
        """
        with self._guard:
            self._check_open()
            manifest = self._follows(record)
            entry = self._entry(record, digest, record.previous)
            tensors: dict[str, np.ndarray | Stream] = dict(self._dense(record))
            for name, rows in self._tables(record):
                parts = {
                    part: getattr(rows, part)
                    for part in ("ids", "tombstones", *self._model.tables[name].columns)
                }
                parts |= encode(rows.weights, self._settings.dtype)
                tensors |= {f"tables/{name}/{part}": tensor for part, tensor in parts.items()}
            packed = self._settings.compression == "zstd"
            entry = self._write(entry, Lineage.of(record), tensors, packed=packed)
            self._publish(manifest.with_delta(entry))
            self._publish_folded()
            self._fold_when_due()
            return entry.size_bytes

    def rebase(self, base: EpochRecord) -> int:
        """Publishes a base alone, and removes everything older.

        Raises:
          ExportError: a file could not be written. What is published is as it was.
        """
        with self._guard:
            self._check_open()
            self._stop_folding()
            entry = self._entry(base, base.previous, "")
            tensors: dict[str, np.ndarray | Stream] = dict(self._dense(base))
            try:
                with self._directory.typed("write a base to"):
                    for name, rows in self._tables(base):
                        columns, dtype = self._model.tables[name].columns, self._settings.dtype
                        tensors |= sorted_rows(
                            name, rows, columns, dtype, self._directory, self._stopping.is_set
                        )
                entry = self._write(entry, Lineage.of(base), tensors)
            except FoldStopped:
                raise ExportError(f"the export to {self._settings.path} was closed") from None
            self._directory.succeed(self._model)
            self._publish(Manifest(self._model.model_id, (entry,), ()))
            self._directory.remove_orphans(self._manifest)
            self._fold_after, self._damage = 0, None
            return entry.size_bytes

    def close(self) -> None:
        """Ends a fold that runs and lets go of the directory. Safe to call twice, and while an export runs."""
        self._stopping.set()
        self._fold_unwanted.set()
        with self._guard:
            self._folder.shutdown(wait=True)
            self._directory.close()

    def _check_open(self) -> None:
        if self._stopping.is_set():
            raise ExportError(f"the export to {self._settings.path} is closed")

    def _follows(self, record: EpochRecord) -> Manifest:
        if self._manifest is None or self._damage:
            raise DeltaGap(self._damage or f"epoch {record.epoch} follows nothing that is exported")
        head = self._manifest.head
        if (record.epoch, record.previous) != (head.epoch + 1, head.digest):
            raise DeltaGap(
                f"epoch {record.epoch}, which follows {record.previous[:12]}, does not follow {head}"
            )
        return self._manifest

    def _tables(self, record: EpochRecord) -> list[tuple[str, TableRows]]:
        """Every table of the model with the rows that the record has of it, which may be none."""
        if unknown := sorted(set(record.tables) - set(self._model.tables)):
            raise ExportError(
                f"epoch {record.epoch} holds table {unknown[0]!r}, which the model does not have"
            )
        return [
            (name, record.tables.get(name) or TableRows.empty(table.row_dim, 0))
            for name, table in self._model.tables.items()
        ]

    def _dense(self, record: EpochRecord) -> Mapping[str, np.ndarray]:
        return {
            f"dense/{name}": array for name, array in record.dense.items() if name.startswith(PARAMS_PREFIX)
        }

    def _entry(self, record: EpochRecord, version: str, previous: str) -> Entry:
        """What the manifest says of a file to be written; `write_file` fills in digest and size."""
        now_ms = int(self._clock() * 1000)
        return Entry(record.epoch, version, previous, "", 0, record.committed_at_ms, now_ms)

    def _write(
        self,
        entry: Entry,
        lineage: Lineage,
        tensors: Mapping[str, np.ndarray | Stream],
        *,
        packed: bool = False,
    ) -> Entry:
        document = export_document(self._model.model_id, entry, lineage)
        return self._directory.write_file(entry, document, tensors, packed=packed)

    def _publish(self, manifest: Manifest) -> None:
        try:
            self._directory.publish(manifest)
        except ExportError:
            # Whether the new manifest is in place is open; what followers can see is what counts.
            self._manifest = self._resume()
            raise
        before, self._manifest = self._manifest, manifest
        if before is not None:
            self._directory.remove(set(before.names) - set(manifest.names))

    # Bases, folded aside

    def _fold_when_due(self) -> None:
        assert self._manifest is not None
        head = self._manifest.head.epoch
        due = max(self._manifest.bases[-1].epoch + self._settings.base_every_epochs, self._fold_after)
        if self._folding is None and head >= due:
            now_ms, stop = int(self._clock() * 1000), self._fold_unwanted.is_set
            dtype = self._settings.dtype
            self._folding = self._folder.submit(
                fold_base, self._directory, self._manifest, self._model, dtype, now_ms, stop
            )

    def _publish_folded(self) -> None:
        """Adds the base that a finished fold has left, if one has, and lets go of what it makes superfluous."""
        if self._folding is None or not self._folding.done():
            return
        assert self._manifest is not None
        try:
            base = self._folding.result()
        except DeltaGap as error:
            # No base could be folded from these files ever again, nor could a new follower use them.
            self._damage = str(error)
        except (FoldStopped, ExportError, OSError, MemoryError) as error:
            # Deltas alone keep followers fresh, so exporting goes on; only the chain gets longer.
            self._fold_after = self._manifest.head.epoch + self._settings.base_every_epochs
            _LOG.warning("folding a base failed, tried again at epoch %d: %s", self._fold_after, error)
        else:
            held = self._held(self._manifest.bases[0].epoch, base.epoch)
            self._publish(self._manifest.with_base(base, self._settings.keep_bases, held))
        # Only now: where publishing failed, the next epoch's export tries it again.
        self._folding = None

    def _held(self, oldest: int, newest: int) -> int | None:
        """The oldest version that a registered follower goes on from; those from which nothing leads on hold nothing."""
        settings = self._settings
        held = self._readers.held(newest, Holding(settings.reader_lease_s, settings.hold_epochs_max))
        # One that has not chosen its base yet may choose any.
        epochs = (oldest if epoch is None else epoch for epoch in held)
        return min((epoch for epoch in epochs if epoch >= oldest), default=None)

    def _stop_folding(self) -> None:
        """Waits for a fold to end that is of no use any more."""
        if self._folding is not None:
            self._fold_unwanted.set()
            wait([self._folding])
            self._folding = None
            self._fold_unwanted.clear()
