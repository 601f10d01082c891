"""Small JSON files that notice their own damage: the last key is the SHA-256 of everything before it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson

__all__ = ["seal", "unseal"]


def seal(document: Mapping[str, Any], *, option: int = 0) -> bytes:
    """The file's content: `document` and its digest, that of the document as compact JSON, keys in their order.

    Args:
      option: orjson's, for how it looks.

    Raises:
      TypeError: the document holds what JSON does not.
    """
    return orjson.dumps({**document, "digest": _digest(document)}, option=option | orjson.OPT_APPEND_NEWLINE)


def unseal(data: bytes) -> dict[str, Any]:
    """The document of a file's content. One that names no digest, as older ones do not, is believed.

    Raises:
      ValueError: it is no JSON object, or not the one that was sealed.
    """
    document = orjson.loads(data)
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    claimed = document.pop("digest", None)
    if claimed is not None and claimed != _digest(document):
        raise ValueError("its content is not what its digest says")
    return document


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(document)).hexdigest()
