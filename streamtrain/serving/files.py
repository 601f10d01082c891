"""The files of an export: weights only, one safetensors file a delta or base (`docs/serving.md`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.errors import CorruptRecord, DeltaGap, ExportError
from streamtrain.log.container import Container
from streamtrain.log.record import EpochRecord
from streamtrain.serving.manifest import Entry
from streamtrain.serving.model import FORMAT_VERSION, ServedModel, ServedTable
from streamtrain.serving.packed import unpacked
from streamtrain.serving.weights import decode

__all__ = ["PARAMS_PREFIX", "ExportedFile", "ExportedRows", "Lineage", "export_document", "read_export"]

PARAMS_PREFIX = "params/"
"""Of the dense state's names; the optimizer's and others are not exported."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """What a file has learned from: of a delta, in its epoch; of a base, from the beginning.

    Attributes:
      samples: samples learned in it.
      samples_total: samples learned by the model up to its end.
      step_next: the first step after its epoch.
      positions: by partition, the next offset to read.
      event_time_ms: (min, max) of its samples' event times; None without samples.
      record_time_ms: (min, max) of when its records reached the source; None without samples.
      watermark_ms: the largest event time seen by the model so far, or None.
      committed_at_ms: when the trainer committed the epoch, by its wall clock.
    """

    samples: int
    samples_total: int
    step_next: int
    positions: dict[str, int]
    event_time_ms: tuple[int, int] | None
    record_time_ms: tuple[int, int] | None
    watermark_ms: int | None
    committed_at_ms: int

    @staticmethod
    def of(record: EpochRecord) -> Lineage:
        """That of an epoch's record, or of a base."""
        return Lineage(
            record.samples,
            record.samples_total,
            record.step_next,
            dict(record.positions),
            record.event_time_ms,
            record.record_time_ms,
            record.watermark_ms,
            record.committed_at_ms,
        )

    @staticmethod
    def folded(parts: Sequence[Lineage]) -> Lineage:
        """That of a base made of an older base and the deltas since, in order."""
        return replace(
            parts[-1],
            samples=parts[-1].samples_total,
            event_time_ms=_widest([part.event_time_ms for part in parts]),
            record_time_ms=_widest([part.record_time_ms for part in parts]),
        )

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Lineage:
        """Raises KeyError, TypeError or ValueError where the document is not one of `asdict`'s."""
        return Lineage(
            samples=int(document["samples"]),
            samples_total=int(document["samples_total"]),
            step_next=int(document["step_next"]),
            positions={str(name): int(offset) for name, offset in document["positions"].items()},
            event_time_ms=_pair(document["event_time_ms"]),
            record_time_ms=_pair(document["record_time_ms"]),
            watermark_ms=None if document["watermark_ms"] is None else int(document["watermark_ms"]),
            committed_at_ms=int(document["committed_at_ms"]),
        )


def _widest(ranges: Iterable[tuple[int, int] | None]) -> tuple[int, int] | None:
    known = [range for range in ranges if range is not None]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else None


def _pair(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    low, high = value
    return int(low), int(high)


@dataclass(frozen=True, slots=True)
class ExportedRows:
    """Rows of one table.

    Attributes:
      ids: `[R]` uint64, distinct; ascending in a base.
      weights: `[R, D]` as they stand in the file: float32, uint16 or int8; see `weights.encode`.
      tombstones: `[T]` uint64, ids that have no row any more; empty in a base.
      last_steps: `[R]` uint32, step of the last update modulo 2^32, in tables whose weights decay; else None.
      scales: `[R]` float32 of int8 weights; else None.
    """

    ids: NDArray[np.uint64]
    weights: NDArray[Any]
    tombstones: NDArray[np.uint64]
    last_steps: NDArray[np.uint32] | None = None
    scales: NDArray[np.float32] | None = None

    def vectors(self, rows: slice | NDArray[np.integer] = slice(None)) -> NDArray[np.float32]:
        """A copy of the weights of some rows, `[N, D]` float32."""
        return decode(self.weights[rows], None if self.scales is None else self.scales[rows])


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """A delta or base that passed every check. The arrays are views of mapped memory.

    Attributes:
      entry: the manifest's.
      lineage: what it has learned from.
      tables: by name, for every table of the model.
      dense: by name (`params/...`), the dense parameters, whole.
    """

    entry: Entry
    lineage: Lineage
    tables: dict[str, ExportedRows]
    dense: dict[str, np.ndarray]


def export_document(model_id: str, entry: Entry, lineage: Lineage) -> dict[str, Any]:
    """The JSON document in the header of an exported file.

    It holds no clock of the exporter, so an epoch that is exported again is the same bytes again: a file that is
    replaced while the manifest names it stays the file that the manifest names.
    """
    return {
        "format": "streamtrain-export",
        "format_version": FORMAT_VERSION,
        "kind": "delta" if entry.previous else "base",
        "model_id": model_id,
        "epoch": entry.epoch,
        "version": entry.version,
        "previous": entry.previous,
        "lineage": asdict(lineage),
    }


def read_export(
    directory: Path, entry: Entry, model: ServedModel, folder: Path | None = None
) -> ExportedFile:
    """Reads a file of an export and checks all of it: digest, place in the chain, model, names, shapes.

    Args:
      folder: where the content of a compressed file stands while it is in use; None: in memory.

    Raises:
      FileNotFoundError: it was collected; the manifest that named it is no longer the newest.
      DeltaGap: it does not stand where the manifest says.
      ExportError: it is damaged, or of another model or format.
      OSError: it cannot be read.
    """
    path = directory / entry.name
    try:
        if entry.unpacked_bytes:
            with unpacked(path, entry.unpacked_bytes, folder) as content:
                container = Container(path, content=content)
        else:
            container = Container(path)
    except CorruptRecord as error:
        raise ExportError(f"{error}; it is refused until the exporter has written another") from error
    try:
        return _parse(container, entry, model)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ExportError(f"{path}: not an exported file of this version of the format: {error!r}") from error


def _parse(container: Container, entry: Entry, model: ServedModel) -> ExportedFile:
    document = container.document
    found = (document["format"], document["format_version"], document["model_id"])
    wanted = ("streamtrain-export", FORMAT_VERSION, model.model_id)
    if found != wanted:
        raise ExportError(f"{container.path}: its format and model are {found}, not {wanted}")
    place = (document["epoch"], document["version"], document["previous"])
    if place != (entry.epoch, entry.version, entry.previous):
        raise DeltaGap(
            f"{container.path}: it is (epoch, version, previous) {place}, the manifest says otherwise"
        )
    if (container.digest, container.size_bytes) != (entry.digest, entry.unpacked_bytes or entry.size_bytes):
        raise ExportError(f"{container.path}: it is whole, but not the file that the manifest names")
    tables = {name: _rows(container, name, table) for name, table in model.tables.items()}
    return ExportedFile(entry, Lineage.from_json(document["lineage"]), tables, dict(_dense(container)))


def _rows(container: Container, name: str, table: ServedTable) -> ExportedRows:
    parts = ["ids", "tombstones", *table.columns]
    weights = container.tensors[f"tables/{name}/weights"].dtype
    if weights == np.int8:
        parts.append("scales")
    found = {part: container.tensors[f"tables/{name}/{part}"] for part in parts}
    rows = len(found["ids"])
    expected = {
        "ids": (np.uint64, (rows,)),
        "weights": (weights if weights in (np.uint16, np.int8) else np.float32, (rows, table.row_dim)),
        "scales": (np.float32, (rows,)),
        "last_steps": (np.uint32, (rows,)),
        "tombstones": (np.uint64, (len(found["tombstones"]),)),
    }
    for part, tensor in found.items():
        dtype, shape = expected[part]
        if tensor.dtype != dtype or tensor.shape != shape:
            raise ExportError(
                f"{container.path}: table {name!r} holds {tensor.dtype} {list(tensor.shape)} "
                f"where {np.dtype(dtype)} {list(shape)} belongs"
            )
    return ExportedRows(**found)


def _dense(container: Container) -> Iterator[tuple[str, np.ndarray]]:
    for name, tensor in container.tensors.items():
        if name.startswith(f"dense/{PARAMS_PREFIX}"):
            yield name.removeprefix("dense/"), tensor
