"""Keeps dead letters as JSON lines in a file that is put aside when it has grown."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import re
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from streamtrain.dead_letters.letter import DeadLetter
from streamtrain.dead_letters.settings import DeadLetterFile
from streamtrain.errors import DeadLettersUnavailable

__all__ = ["FileSink"]

logger = logging.getLogger(__name__)

_PORTION_BYTES = 1 << 20
_TAIL_BYTES = 1 << 16


class FileSink:
    """A `DeadLetterSink`: appends whole lines and syncs them before `write` returns.

    A crash may leave the beginning of a line at the end of the file. Nothing was promised of it (its epoch was not
    committed), so the next start cuts it off; its record is read and refused again.

    Args:
      settings: the file and its bounds.
    """

    def __init__(self, settings: DeadLetterFile) -> None:
        self._settings = settings
        self._path = Path(settings.path).expanduser()
        self._lock = threading.Lock()
        self._file: int | None = None
        self._size = 0

    @property
    def name(self) -> str:
        return str(self._path)

    @property
    def bytes_max(self) -> int:
        return self._settings.value_bytes_max

    async def open(self) -> None:
        """As `DeadLetterSink.open`."""
        await self.write([])

    async def write(self, letters: Iterable[DeadLetter]) -> int:
        """As `DeadLetterSink.write`."""
        return await asyncio.to_thread(self._write, letters)

    async def close(self) -> None:
        """As `DeadLetterSink.close`."""
        await asyncio.to_thread(self._close)

    def _write(self, letters: Iterable[DeadLetter]) -> int:
        # A cancelled call cannot be stopped in its thread: whoever comes next waits for it.
        with self._lock:
            try:
                return self._append(letters)
            except OSError as error:
                self._give_up()
                raise DeadLettersUnavailable(
                    f"dead letters cannot be written to {self._path}: {error.strerror or error}; make room or make it "
                    "writable (training.bad_samples.dead_letters). It is tried again by itself"
                ) from error

    def _append(self, letters: Iterable[DeadLetter]) -> int:
        file = self._opened()
        count, portion, size = 0, list[bytes](), 0
        for letter in letters:
            line = _line(letter)
            portion.append(line)
            count, size = count + 1, size + len(line)
            if size >= _PORTION_BYTES:
                file = self._put(file, portion)
                portion, size = [], 0
        file = self._put(file, portion)
        if count:
            os.fsync(file)
        return count

    def _opened(self) -> int:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                self._size = _cut_torn_line(file)
                _sync_folder(self._path.parent)
            except OSError:
                os.close(file)
                raise
            self._file = file
        return self._file

    def _put(self, file: int, lines: list[bytes]) -> int:
        """Appends lines, into a new file where this one is full; returns the descriptor of the one that is current."""
        if not lines:
            return file
        if self._size >= self._settings.rotate_bytes:
            file = self._rotate(file)
        data = memoryview(b"".join(lines))
        size = len(data)
        while data:
            data = data[os.write(file, data) :]
        self._size += size
        return file

    def _rotate(self, file: int) -> int:
        os.fsync(file)
        os.close(file)
        self._file = None
        aside = self._asides()
        number = max(aside, default=0) + 1
        self._path.rename(self._path.with_name(f"{self._path.name}.{number:06d}"))
        for old in sorted(aside)[: max(0, len(aside) + 2 - self._settings.files_max)]:
            aside[old].unlink(missing_ok=True)
            logger.warning(
                "removed %s: more than %d files of dead letters", aside[old], self._settings.files_max
            )
        return self._opened()

    def _asides(self) -> dict[int, Path]:
        """By number, the files that were put aside."""
        pattern = re.compile(re.escape(self._path.name) + r"\.(\d{6,})")
        found = ((pattern.fullmatch(path.name), path) for path in self._path.parent.iterdir())
        return {int(match[1]): path for match, path in found if match}

    def _give_up(self) -> None:
        """Leaves whole lines behind, as far as the disk lets it, and opens anew next time: a failed sync stays failed."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                os.ftruncate(file, self._size)
            with suppress(OSError):
                os.close(file)

    def _close(self) -> None:
        with self._lock:
            file, self._file = self._file, None
            if file is not None:
                os.close(file)


def _line(letter: DeadLetter) -> bytes:
    # The standard library's: names of files and of fields may be no valid Unicode, which ASCII can still hold.
    text = json.dumps(
        {
            "partition": letter.partition,
            "offset": letter.offset,
            "leaves": letter.leaves,
            "timestamp_ms": letter.time_ms,
            "reason": letter.reason,
            "field": letter.field,
            "message": letter.message,
            "key_base64": _base64(letter.key),
            "value_base64": _base64(letter.value),
            "value_bytes": letter.value_bytes,
        }
    )
    return text.encode() + b"\n"


def _base64(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def _cut_torn_line(file: int) -> int:
    """Cuts off what follows the last newline; returns the size that is left."""
    size = end = os.fstat(file).st_size
    while end:
        begin = max(0, end - _TAIL_BYTES)
        at = os.pread(file, end - begin, begin).rfind(b"\n")
        if at >= 0:
            end = begin + at + 1
            break
        end = begin
    if end < size:
        os.ftruncate(file, end)
    return end


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
