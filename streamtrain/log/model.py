"""`model.json`: what the model of a log is. Written once, when the log is made."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from streamtrain.errors import CorruptRecord, FormatUnknown
from streamtrain.log.sealed import seal, unseal

__all__ = ["ModelDescription"]

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What never changes about a model.

    Attributes:
      name: for people.
      model_id: 32 hex digits, made once; every record, store and export names it.
      created_at_ms: milliseconds since 1970.
      job: the resolved job description: JSON values, no secrets.
      migrated: the models that this one was migrated from, oldest first: of each `model_id`, the `epoch` that was taken
        over and what became of it; see `streamtrain.migration`. Empty where it began with nothing.
    """

    name: str
    model_id: str
    created_at_ms: int
    job: Mapping[str, Any]
    migrated: Sequence[Mapping[str, Any]] = field(default_factory=tuple)

    @staticmethod
    def new(
        name: str, job: Mapping[str, Any], migrated: Sequence[Mapping[str, Any]] = ()
    ) -> ModelDescription:
        return ModelDescription(name, uuid.uuid4().hex, time.time_ns() // 1_000_000, job, migrated)

    def to_json(self) -> bytes:
        """Raises TypeError where the job holds what JSON does not."""
        fields = asdict(self)
        if not self.migrated:
            del fields["migrated"]
        return seal({"format": _FORMAT, **fields}, option=orjson.OPT_INDENT_2)

    @staticmethod
    def from_json(text: bytes, path: Path) -> ModelDescription:
        """Reads `model.json` of `path`.

        Raises:
          FormatUnknown: a newer version wrote it.
          CorruptRecord: it cannot be understood; the message names `path`.
        """
        try:
            fields = unseal(text)
            if (found := fields.pop("format")) != _FORMAT:
                raise FormatUnknown(
                    path, f"its format is {found!r}, this version of streamtrain reads {_FORMAT}"
                )
            return ModelDescription(**fields)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CorruptRecord(
                f"{path}: cannot be read ({error}); restore it from a backup: without it the log cannot be opened"
            ) from error
