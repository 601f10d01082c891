"""`model.json` of an export directory: everything but the weights that a follower needs to score samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import Field, TypeAdapter, ValidationError

from streamtrain.errors import ExportError
from streamtrain.layout import Layout
from streamtrain.log.sealed import seal, unseal
from streamtrain.samples.schema import Schema
from streamtrain.settings import Settings
from streamtrain.sparse.lifecycle_settings import Decay, Unadmitted
from streamtrain.sparse.settings import AnyInit, TableSettings
from streamtrain.sparse.tables import AnyTable, Hashing

__all__ = ["FORMAT_VERSION", "HASH_VERSION", "ServedModel", "ServedTable"]

FORMAT_VERSION = 1
"""Of `model.json` and the headers of files, and of manifests but for `manifest.PACKED_VERSION`. A follower refuses any other."""

HASH_VERSION = 1
"""Of the feature-id hash that `docs/feature-ids.md` specifies."""

_TABLES: TypeAdapter[dict[str, AnyTable]] = TypeAdapter(dict[str, AnyTable])


class ServedTable(Settings):
    """What a follower must know of one embedding table."""

    dim: int
    """Floats a row."""
    init: AnyInit
    """The vector of an id that the model has not learned, decided by hash of (seed, table, id)."""
    rows_max: int
    """The trainer's bound on rows, and so the follower's."""
    hashing: Hashing | None = None
    """How ids share rows, where the table is of fixed size; `docs/row-ids.md` is the law."""
    unadmitted: Unadmitted | None = None
    """What all ids without a row look like, where the table has admission; else each has its own initial vector."""
    decay: Decay | None = None
    """How weights fade between updates, where they do: then files have the rows' `last_steps`."""

    @staticmethod
    def of(settings: AnyTable) -> ServedTable:
        """What serving needs of a job's table."""
        if not isinstance(settings, TableSettings):
            rows_max, hashing = settings.hashing.rows, settings.hashing
            return ServedTable(dim=settings.dim, init=settings.init, rows_max=rows_max, hashing=hashing)
        fades = settings.decay is not None and settings.decay.weights < 1
        return ServedTable(
            dim=settings.dim,
            init=settings.init,
            rows_max=settings.rows_max,
            unadmitted=None if settings.admission.kind == "none" else settings.unadmitted,
            decay=settings.decay if fades else None,
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """What a file has for each row beside its id."""
        return ("weights",) if self.decay is None else ("weights", "last_steps")

    @property
    def row_dim(self) -> int:
        """Floats a row."""
        return self.dim if self.hashing is None else self.hashing.row_dim(self.dim)


class ServedModel(Settings):
    """One model, as a follower sees it. Immutable for the life of an export directory."""

    format: Literal["streamtrain-export"] = "streamtrain-export"
    """What this directory is."""
    format_version: Literal[1] = 1
    """See `FORMAT_VERSION`."""
    hash_version: Literal[1] = 1
    """See `HASH_VERSION`."""
    model_id: str
    """The log's id of the model; every file of the directory repeats it."""
    migrated: list[str] = Field(default_factory=list)
    """The ids of the models that it was migrated from, oldest first: a follower of one of them goes over to it."""
    name: str
    """The model's name, for people."""
    seed: int
    """Decides the initial vectors."""
    sample_schema: Schema
    """The samples: slots and labels."""
    tables: dict[str, ServedTable]
    """The embedding tables by name."""
    model: dict[str, Any]
    """The dense half's `[model]` section: the kind and its options."""

    @staticmethod
    def of_job(model_id: str, name: str, job: Mapping[str, Any], migrated: Sequence[str] = ()) -> ServedModel:
        """Takes from a job's resolved description (the log's `model.json`) what serving needs.

        Args:
          model_id, name, migrated: the model's.
          job: with `schema`, `tables`, `model` and `seed`.

        Raises:
          ExportError: the description lacks one of these or holds something else under its name.
        """
        try:
            tables = _TABLES.validate_python(job["tables"])
            return ServedModel(
                model_id=model_id,
                migrated=list(migrated),
                name=name,
                seed=job["seed"],
                sample_schema=Schema.model_validate(job["schema"]),
                tables={name: ServedTable.of(table) for name, table in tables.items()},
                model=dict(job["model"]),
            )
        except (KeyError, TypeError, ValidationError) as error:
            raise ExportError(f"the description of model {name!r} cannot be exported: {error}") from error

    @staticmethod
    def read(path: Path) -> ServedModel:
        """Reads `model.json`.

        Raises:
          FileNotFoundError: nothing was exported there yet.
          ExportError: it is not such a file, or of another version.
        """
        data = path.read_bytes()
        try:
            return ServedModel.model_validate(unseal(data))
        except ValueError as error:
            raise ExportError(
                f"{path} does not describe a model that this version of streamtrain serves: {error}; "
                "export into an empty directory, or upgrade the follower"
            ) from error

    def to_bytes(self) -> bytes:
        """The file's content; the same for the same model.

        Keys stand in the job's order, never sorted: the order of slots is the order of columns.
        """
        unsaid = set() if self.migrated else {"migrated"}
        return seal(self.model_dump(mode="json", exclude=unsaid), option=orjson.OPT_INDENT_2)

    @property
    def layout(self) -> Layout:
        """Where each slot stands in the arrays between the two halves."""
        return Layout.of(self.sample_schema, {name: table.dim for name, table in self.tables.items()})
