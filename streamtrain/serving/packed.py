"""Files of an export that are compressed: one zstd frame (RFC 8878) around the whole safetensors file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from streamtrain.errors import CorruptRecord
from streamtrain.log.files import Files

__all__ = ["Packer", "unpacked"]

_LEVEL = 1
"""Higher ones make weights no smaller (docs/performance.md)."""
_CHUNK_BYTES = 4 << 20


class Packer:
    """A sink for `container.write` that holds the file until it is whole: the digest at its front is known last."""

    def __init__(self) -> None:
        self._data = bytearray()

    def __len__(self) -> int:
        return len(self._data)

    def write(self, data: bytes | memoryview) -> None:
        self._data += data

    def patch(self, offset: int, data: bytes | memoryview) -> None:
        self._data[offset : offset + len(data)] = data

    def packed(self) -> bytes:
        """The frame."""
        # As a buffer it would have a tail: pyarrow's memoryview is as long as the frame might have become.
        packed: bytes = pa.Codec("zstd", _LEVEL).compress(self._data, asbytes=True)
        return packed


@contextmanager
def unpacked(path: Path, size: int, folder: Path | None) -> Iterator[BinaryIO]:
    """A compressed file's content, as an open file without a name.

    Args:
      size: of the content; no more is ever unpacked.
      folder: where it stands on a disk meanwhile. None: in memory, where there is such a file, else where temporary files go.

    Raises:
      CorruptRecord: it is no such frame, or the content has another size.
      FileNotFoundError, OSError.
    """
    with path.open("rb") as packed, _nameless(folder) as file:
        left = size
        try:
            with pa.CompressedInputStream(packed, "zstd") as stream:
                while chunk := stream.read(min(_CHUNK_BYTES, left + 1)):
                    left -= len(chunk)
                    if left < 0:
                        break
                    # By the file layer: a write to a full disk may be short without a word.
                    Files().write(file.fileno(), chunk)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise CorruptRecord(f"{path}: it is not a whole zstd frame ({error})") from error
        if left:
            raise CorruptRecord(f"{path}: unpacked it has not the {size} bytes that the manifest says")
        file.seek(0)
        yield file


def _nameless(folder: Path | None) -> BinaryIO:
    if folder is None and hasattr(os, "memfd_create"):
        return open(os.memfd_create("delta"), "w+b", buffering=0)  # noqa: PTH123 - a descriptor
    return tempfile.TemporaryFile(dir=folder, buffering=0)
