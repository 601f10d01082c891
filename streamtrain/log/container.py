"""A safetensors file with a JSON document and its own SHA-256 in the header: what every file of the log is.

Layout (docs/epoch-log.md): 8 bytes little-endian header length, the header (JSON, padded with spaces so that data begin
8-byte aligned), then the tensors by descending item size and then by name, without holes, so each is aligned.
The header begins with exactly `{"__metadata__":{"digest":"`, so the 64 hex digits of the digest stand at a fixed place.
The digest is the SHA-256 of the whole file with those 64 digits replaced by zeros.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import orjson

from streamtrain.errors import CorruptRecord
from streamtrain.log.files import Files

__all__ = ["DIGEST_OFFSET", "Container", "Stream", "read_digest", "torn", "write"]

DOCUMENT_KEY = "streamtrain"
_PREFIX = b'{"__metadata__":{"digest":"'
DIGEST_OFFSET = 8 + len(_PREFIX)
_ZEROS = b"0" * 64
_HEADER_BYTES_MAX = 100_000_000  # the safetensors format's own limit
# The interpreter is left for each chunk and taken back after it, which waits for whoever computes in Python meanwhile
# (5 ms and more): at 1 MB, half a millisecond of hashing, a start that imports and compiles beside it is held up for seconds.
_CHUNK_BYTES = 16 << 20
_GATHERED_BYTES_MAX = 1 << 16

_DTYPES = {
    "BOOL": "?", "I8": "i1", "U8": "u1", "I16": "<i2", "U16": "<u2", "F16": "<f2",
    "I32": "<i4", "U32": "<u4", "F32": "<f4", "I64": "<i8", "U64": "<u8", "F64": "<f8",
}  # fmt: skip
DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(code) for name, code in _DTYPES.items()}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Stream:
    """A tensor that is made piece by piece while it is written, never held whole.

    Attributes:
      dtype, shape: of the whole.
      chunks: called once per writing; yields arrays that, one after the other, are the whole in C order.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[np.ndarray]]


class Sink(Protocol):
    """Where `write` puts the bytes: an `Aside`, or whatever has these two methods."""

    def write(self, data: bytes | memoryview) -> None: ...
    def patch(self, offset: int, data: bytes | memoryview) -> None: ...


def write(
    document: Mapping[str, Any], tensors: Mapping[str, np.ndarray | Stream], sink: Sink | None = None
) -> str:
    """Writes a file, or (without a sink) only computes the digest that it would have.

    Args:
      document: JSON values; keys are sorted, so equal documents give equal bytes.
      tensors: by name; of the dtypes in `DTYPES`, any byte order and strides.

    Returns:
      The digest, 64 hex digits.

    Raises:
      ValueError: a dtype that the format does not have, or a header above 100 MB.
      OSError: the sink's.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header = _header(document, ordered)
    digest = hashlib.sha256()
    for data in _gathered(_pieces(header, ordered)):
        digest.update(data)
        if sink is not None:
            sink.write(data)
    if sink is not None:
        sink.patch(DIGEST_OFFSET, digest.hexdigest().encode())
    return digest.hexdigest()


def _header(document: Mapping[str, Any], ordered: list[tuple[str, np.ndarray | Stream]]) -> bytes:
    text = orjson.dumps(document, option=orjson.OPT_SORT_KEYS).decode()
    header: dict[str, Any] = {"__metadata__": {"digest": _ZEROS.decode(), DOCUMENT_KEY: text}}
    offset = 0
    for name, tensor in ordered:
        dtype = tensor.dtype.newbyteorder("<")
        if dtype not in _NAMES:
            raise ValueError(
                f"tensor {name!r} is {tensor.dtype}; the format has {', '.join(map(str, _NAMES))}: cast it"
            )
        end = offset + math.prod(tensor.shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": tensor.shape, "data_offsets": (offset, end)}
        offset = end
    packed = orjson.dumps(header)
    packed += b" " * (-len(packed) % 8)
    if len(packed) > _HEADER_BYTES_MAX:
        raise ValueError(
            f"the header has {len(packed)} bytes; the safetensors format allows {_HEADER_BYTES_MAX}"
        )
    assert packed.startswith(_PREFIX)
    return len(packed).to_bytes(8, "little") + packed


def _pieces(header: bytes, ordered: list[tuple[str, np.ndarray | Stream]]) -> Iterator[bytes | memoryview]:
    yield header
    for name, tensor in ordered:
        written = 0
        for chunk in tensor.chunks() if isinstance(tensor, Stream) else (tensor,):
            little = np.ascontiguousarray(chunk, dtype=tensor.dtype.newbyteorder("<"))
            written += little.nbytes
            yield little.reshape(-1).view(np.uint8).data
        # A wrong stream would shift every tensor after it; it must never get as far as a name.
        if written != math.prod(tensor.shape) * tensor.dtype.itemsize:
            raise ValueError(
                f"the stream of tensor {name!r} gave {written} bytes, not those of shape {tensor.shape}"
            )


def _gathered(pieces: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """Small pieces joined: a record has dozens of tensors of a few bytes, and every write is a call into the system."""
    small: list[bytes | memoryview] = []
    small_bytes = 0
    for piece in pieces:
        if len(piece) + small_bytes <= _GATHERED_BYTES_MAX:
            small.append(bytes(piece))  # The next piece may be made in the same memory.
            small_bytes += len(piece)
        else:
            yield b"".join(small)
            yield piece
            small, small_bytes = [], 0
    yield b"".join(small)


def read_digest(path: Path, files: Files) -> str:
    """Reads the digest that a file claims to have, nothing else.

    Raises:
      CorruptRecord: the file does not begin like one of ours.
      FileNotFoundError, OSError.
    """
    with files.open(path) as file:
        return _claimed_digest(path, file)


def _claimed_digest(path: Path, file: BinaryIO) -> str:
    start = file.read(DIGEST_OFFSET + 64)
    file.seek(0)
    if start[8:DIGEST_OFFSET] != _PREFIX or len(start) != DIGEST_OFFSET + 64:
        raise CorruptRecord(f"{path}: the file is cut short, or does not begin with a streamtrain header")
    return _hex(path, start[DIGEST_OFFSET:])


def torn(path: Path, files: Files) -> str | None:
    """Why a file was never written to its end, as a lost write leaves it: shorter than its own header says.

    Returns:
      None where its length is right, whatever it holds: then damage of another kind is for `Container` to find.

    Raises:
      FileNotFoundError, OSError.
    """
    size = files.size(path)
    with files.open(path) as file:
        start = file.read(8)
        text = file.read(min(length := int.from_bytes(start, "little"), _HEADER_BYTES_MAX))
    if length > _HEADER_BYTES_MAX or text[: len(_PREFIX)] != _PREFIX[: len(text)]:
        return None
    if len(start) == 8 and length % 8:
        return None
    try:
        header, end = json.JSONDecoder().raw_decode(text.decode("latin-1"))
    except ValueError:
        return f"it ends inside its header, after {size} bytes" if size < 8 + length or not start else None
    if text[end:].strip(b" "):
        return None  # Behind a whole header is padding alone: it is the length before it that is damaged.
    if size < 8 + length:
        return f"it ends inside its header, after {size} bytes"
    try:
        whole = 8 + length + _data_bytes(header)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return f"it has {size} of its {whole} bytes" if size < whole else None


class Container:
    """An open file: its document, and its tensors as read-only views of mapped memory.

    Reading a tensor costs only the pages touched, and the memory is the page cache's. The views outlive the
    file's name; they keep one descriptor open until the last of them is gone.

    Attributes:
      path: the file.
      size_bytes: its size.
      digest: the digest that the header claims; `check` compares.
      document: the JSON document.
      tensors: by name, views in the file's order.
    """

    def __init__(
        self,
        path: Path,
        files: Files | None = None,
        *,
        check: bool = True,
        content: BinaryIO | None = None,
    ) -> None:
        """Opens and parses a file.

        Args:
          check: compares the digest, which reads every byte once.
          content: an open file, unbuffered and at its beginning, with what `path` holds packed; the caller closes it. Default:
            `path` itself.

        Raises:
          CorruptRecord: naming the file and what is wrong with it.
          FileNotFoundError, OSError.
        """
        self.path = path
        files = files or Files()
        self.digest = read_digest(path, files) if content is None else _claimed_digest(path, content)
        with files.open(path) if content is None else nullcontext(content) as file:
            if check:
                size = files.size(path) if content is None else os.fstat(file.fileno()).st_size
                self._check_digest(file, size)
            mapping = files.map(file)
        self.size_bytes = len(mapping)
        length = int.from_bytes(mapping[:8], "little")
        if length > min(_HEADER_BYTES_MAX, self.size_bytes - 8):
            raise self._corrupt(f"the header claims {length} bytes of a file of {self.size_bytes}")
        try:
            header = orjson.loads(mapping[8 : 8 + length])
            self.document: dict[str, Any] = orjson.loads(header.pop("__metadata__")[DOCUMENT_KEY])
            self.tensors = dict(self._views(header, memoryview(mapping)[8 + length :]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._corrupt(f"the header cannot be read ({error!r})") from error

    def _check_digest(self, file: BinaryIO, size: int) -> None:
        # The descriptor is read, not the mapping: a failing disk is then an error to report, not a signal that kills.
        chunk = memoryview(bytearray(min(size, _CHUNK_BYTES)))
        digest = hashlib.sha256()
        first = True
        while count := file.readinto(chunk):  # type: ignore[attr-defined]
            if first:
                chunk[DIGEST_OFFSET : DIGEST_OFFSET + 64] = _ZEROS
                first = False
            digest.update(chunk[:count])
        if digest.hexdigest() != self.digest:
            raise self._corrupt(
                f"its SHA-256 is {digest.hexdigest()[:16]}…, its header says {self.digest[:16]}…"
            )

    def _views(self, header: dict[str, Any], data: memoryview) -> Iterator[tuple[str, np.ndarray]]:
        end = 0
        for name, dtype, shape, begin, end in _places(header):
            if end > len(data):
                raise ValueError(f"tensor {name!r} ends at {end} of {len(data)} bytes")
            yield name, np.ndarray(shape, dtype, buffer=data[begin:end])
        if end != len(data):
            raise ValueError(f"{len(data) - end} bytes follow the last tensor")

    def _corrupt(self, what: str) -> CorruptRecord:
        return CorruptRecord(f"{self.path}: {what}")


def _places(
    tensors: Mapping[str, Any],
) -> Iterator[tuple[str, np.dtype[Any], tuple[int, ...], int, int]]:
    """Name, dtype, shape, first byte and end of each tensor of a header; ValueError where there is a hole."""
    offset = 0
    for name, spec in tensors.items():
        dtype, shape = DTYPES[spec["dtype"]], tuple(spec["shape"])
        begin, end = spec["data_offsets"]
        if begin != offset or end != begin + math.prod(shape) * dtype.itemsize or min(shape, default=0) < 0:
            raise ValueError(
                f"tensor {name!r} does not follow the one before it, or its shape is not its size"
            )
        yield name, dtype, shape, begin, end
        offset = end


def _data_bytes(header: Mapping[str, Any]) -> int:
    """How many bytes of tensors a header promises; ValueError where it contradicts itself."""
    tensors = {name: spec for name, spec in header.items() if name != "__metadata__"}
    return max((end for *_, end in _places(tensors)), default=0)


def _hex(path: Path, digits: bytes) -> str:
    try:
        return bytes.fromhex(digits.decode()).hex()
    except ValueError as error:
        raise CorruptRecord(f"{path}: the digest in the header is not 64 hex digits") from error
