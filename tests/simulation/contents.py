"""Parses a file's content once in a world: most are read by many, and parsing is a quarter of what a world costs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import exporters.deltas
import streamtrain.log.reader
import streamtrain.serving.files
from streamtrain.log import format
from streamtrain.log.container import Container
from streamtrain.log.files import Files
from streamtrain.log.model import ModelDescription
from streamtrain.log.record import EpochRecord
from streamtrain.serving.model import ServedModel
from tests.simulation.disk import Glances, Reading
from tests.simulation.loom import running

__all__ = ["PATCHES"]


def _opened(path: Path, files: Files | None = None, *, check: bool = True) -> Container:
    """As `Container`, which opens the file twice: what comes between two opens may happen here too."""
    glances = Glances(running().disk)
    files = files or glances
    files.open(path).close()
    file = files.open(path)
    assert isinstance(file, Reading)
    parsed, key = file.inode.parsed, (str(path), check)
    if (known := parsed.get(key)) is None:
        # Nobody else runs within this line, so what is parsed is what was read.
        known = parsed[key] = Container(path, glances, check=check)
    return known


def _decoded(document: Mapping[str, Any], tensors: Mapping[str, Any]) -> EpochRecord:
    """As `format.decode`. The document is kept, so that no other one has its id in this world."""
    parsed = running().parsed
    if (known := parsed.get(id(document))) is None:
        known = parsed[id(document)] = document, format.decode(document, tensors)
    return known[1]


def _of_job(model_id: str, *arguments: Any) -> ServedModel:
    """As `ServedModel.of_job`, which every daemon of a world asks the same."""
    parsed = running().parsed
    if (known := parsed.get(model_id)) is None:
        known = parsed[model_id] = ServedModel.of_job(model_id, *arguments)
    return known


def _described(text: bytes, path: Path) -> ModelDescription:
    """As `ModelDescription.from_json`, which everybody asks who opens a log."""
    parsed = running().parsed
    if (known := parsed.get(text)) is None:
        known = parsed[text] = ModelDescription.from_json(text, path)
    return known


PATCHES: list[tuple[Any, str, Any]] = [
    (streamtrain.log.reader, "Container", _opened),
    (
        streamtrain.log.reader,
        "format",
        SimpleNamespace(decode=_decoded, Kind=format.Kind, unknown=format.unknown),
    ),
    (streamtrain.log.reader, "ModelDescription", SimpleNamespace(from_json=_described)),
    (streamtrain.serving.files, "Container", _opened),
    (exporters.deltas, "ServedModel", SimpleNamespace(of_job=_of_job)),
]
"""What makes readers of logs and exports use it."""
