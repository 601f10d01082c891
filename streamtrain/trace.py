"""A trace of who did what when, for Perfetto (https://ui.perfetto.dev) and chrome://tracing.

Format: Chrome trace event, JSON array (Google, "Trace Event Format"): one event a line. Its closing bracket is optional, so
that a file whose writer was killed is readable as it is.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol

from streamtrain.errors import ConfigError

__all__ = ["SILENT", "Spans", "Trace"]

logger = logging.getLogger(__name__)

BYTES_MAX = 256 << 20
"""How long a trace may become: about three million spans, what a browser can still show."""
_FLUSH_BYTES = 64 << 10
_FLUSH_S = 0.5


class Spans(Protocol):
    """Where spans go: a `Trace`, or `SILENT`."""

    def span(self, track: str, name: str) -> AbstractContextManager[None]:
        """What goes on inside is a span of that name. Spans of one track nest, or follow one another."""
        ...


class _Silent:
    _nothing = nullcontext()

    def span(self, track: str, name: str) -> AbstractContextManager[None]:
        return self._nothing


SILENT: Spans = _Silent()
"""Keeps no spans."""


class _Span:
    """One span of a trace, written at its end."""

    __slots__ = ("_begin", "_name", "_trace", "_track")

    def __init__(self, trace: Trace, track: str, name: str) -> None:
        self._trace, self._track, self._name = trace, track, name

    def __enter__(self) -> None:
        self._begin = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._trace.add(self._track, self._name, self._begin, time.perf_counter())


class Trace:
    """Appends spans to a file; from any thread. A context manager.

    What a kill takes are the spans of the last half second. Where the file is full, or cannot be written, the trace ends
    with a warning and the run goes on.

    Args:
      path: the file; what is there is replaced.
      bytes_max: where the trace ends.

    Raises:
      ConfigError: the file cannot be made.
    """

    def __init__(self, path: Path, bytes_max: int = BYTES_MAX) -> None:
        self._path, self._bytes_max = path, bytes_max
        try:
            self._file: BinaryIO | None = path.open("wb", buffering=0)
        except OSError as error:
            raise ConfigError(
                f"cannot write the profile {path}: {error.strerror or error}; name a file in a folder that can be written"
            ) from error
        self._guard = threading.Lock()
        self._lines: list[bytes] = [b"[\n"]
        self._waiting = self._written = 0
        self._tracks: dict[str, int] = {}
        self._quoted: dict[str, str] = {}
        self._began = self._flushed = time.perf_counter()

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, *_: object) -> None:
        with self._guard:
            # An event without a comma behind it, so that the array is JSON to those who insist.
            self._append(
                {"ph": "i", "s": "g", "name": "end", "pid": os.getpid(), "ts": self._now_us()}, b"\n]\n"
            )
            self._flush()
            self._close()

    def span(self, track: str, name: str) -> AbstractContextManager[None]:
        """As `Spans.span`."""
        return _Span(self, track, name)

    def add(self, track: str, name: str, begin: float, end: float) -> None:
        """Adds a span that has ended; both times are of `time.perf_counter`."""
        with self._guard:
            if self._file is None:
                return
            thread = self._tracks.get(track) or self._introduce(track)
            if (quoted := self._quoted.get(name)) is None:
                quoted = self._quoted[name] = json.dumps(name)
            # By hand: this is on the path of a step, and a dump takes four times as long.
            line = (
                f'{{"ph":"X","pid":{os.getpid()},"tid":{thread},"name":{quoted},'
                f'"ts":{(begin - self._began) * 1e6:.1f},"dur":{(end - begin) * 1e6:.1f}}},\n'
            ).encode()
            self._lines.append(line)
            self._waiting += len(line)
            if self._waiting >= _FLUSH_BYTES or end - self._flushed >= _FLUSH_S:
                self._flush()

    def _introduce(self, track: str) -> int:
        """The number of a new track, which the file is told."""
        number = self._tracks[track] = len(self._tracks) + 1
        common = {"ph": "M", "pid": os.getpid(), "tid": number}
        self._append(common | {"name": "thread_name", "args": {"name": track}})
        self._append(common | {"name": "thread_sort_index", "args": {"sort_index": number}})
        return number

    def _append(self, event: dict[str, object], ending: bytes = b",\n") -> None:
        self._lines.append(json.dumps(event).encode() + ending)
        self._waiting += len(self._lines[-1])

    def _now_us(self) -> float:
        return round((time.perf_counter() - self._began) * 1e6, 1)

    def _flush(self) -> None:
        """Writes what waits in one call, so that a kill cuts no line in two."""
        if self._file is None:
            return
        try:
            lines = b"".join(self._lines)
            if self._file.write(lines) < len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            logger.warning("the profile %s ends here: %s", self._path, error.strerror or error)
            self._close()
        self._written += self._waiting
        self._lines.clear()
        self._waiting, self._flushed = 0, time.perf_counter()
        if self._written >= self._bytes_max and self._file is not None:
            logger.warning("the profile %s ends here: it holds %d MiB", self._path, self._written >> 20)
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
