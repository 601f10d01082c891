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
from streamtrain.log.record import EpochRecord
from streamtrain.serving.model import ServedModel
from tests.simulation.loom import running

__all__ = ["PATCHES"]


def _opened(path: Path, files: Files | None = None, *, check: bool = True) -> Container:
    """As `Container`, which opens the file twice: what comes between two opens may happen here too."""
    if files is None:
        data = path.read_bytes()
    else:
        files.open(path).close()
        with files.open(path) as file:
            data = file.read()
    parsed = running().parsed
    if (known := parsed.get((path, check, data))) is None:
        # Nobody else runs within this line, so what is parsed is what was read.
        known = parsed[path, check, data] = Container(path, check=check)
    return known


def _decoded(document: Mapping[str, Any], tensors: Mapping[str, Any]) -> EpochRecord:
    """As `format.decode`; the documents are those of files that are known, so they live as long as the world."""
    parsed = running().parsed
    if (known := parsed.get(id(document))) is None:
        known = parsed[id(document)] = format.decode(document, tensors)
    return known


def _of_job(model_id: str, *arguments: Any) -> ServedModel:
    """As `ServedModel.of_job`, which every daemon of a world asks the same."""
    parsed = running().parsed
    if (known := parsed.get(model_id)) is None:
        known = parsed[model_id] = ServedModel.of_job(model_id, *arguments)
    return known


PATCHES: list[tuple[Any, str, Any]] = [
    (streamtrain.log.reader, "Container", _opened),
    (streamtrain.log.reader, "format", SimpleNamespace(decode=_decoded, Kind=format.Kind)),
    (streamtrain.serving.files, "Container", _opened),
    (exporters.deltas, "ServedModel", SimpleNamespace(of_job=_of_job)),
]
"""What makes readers of logs and exports use it."""
