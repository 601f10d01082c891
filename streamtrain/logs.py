"""Log lines on standard error: for people on a terminal, one JSON object a line elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import TextIO

import orjson

from streamtrain.config import LoggingSettings
from streamtrain.repeats import Repeats, Withheld

__all__ = ["configure_logging", "correlate"]

_WINDOW_S = 60.0

_where: Callable[[], dict[str, int]] = dict


def correlate(where: Callable[[], dict[str, int]] | None) -> None:
    """From here on each JSON line also holds what `where` says at that moment, on any thread; None ends it."""
    global _where
    _where = where or dict


class _Handler(logging.StreamHandler[TextIO]):
    """Writes lines, but of warnings and errors of a kind only so many a minute: then, how many more there were.

    Two lines are of a kind where the same words hold other values.
    """

    def __init__(self, repeats: Repeats) -> None:
        super().__init__(sys.stderr)
        self._repeats = repeats

    def emit(self, record: logging.LogRecord) -> None:
        """Called by `logging`, one thread at a time."""
        for withheld in self._repeats.ended(record.created):
            super().emit(self._told(withheld))
        kind = record.name, record.levelno, str(record.msg)
        if record.levelno < logging.WARNING or self._repeats.admits(
            kind, record.getMessage(), record.created
        ):
            super().emit(record)

    def close(self) -> None:
        """Tells what was withheld up to now."""
        for withheld in self._repeats.ended(float("inf")):
            super().emit(self._told(withheld))
        super().close()

    def _told(self, withheld: Withheld) -> logging.LogRecord:
        assert isinstance(withheld.kind, tuple)
        name, level, _ = withheld.kind
        text = "%d more lines like this within %.0f s, the last: %s"
        arguments = (withheld.count, self._repeats.window_s, withheld.last)
        return logging.LogRecord(name, level, "", 0, text, arguments, None)


class _Json(logging.Formatter):
    def __init__(self, model: str) -> None:
        super().__init__()
        self._model = model

    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "model": self._model,
            **_where(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(event).decode()


def configure_logging(settings: LoggingSettings, model: str) -> None:
    """Sends every log line of the process to standard error, in the chosen format. May be called again."""
    style = settings.format
    if style == "auto":
        style = "console" if sys.stderr.isatty() else "json"
    handler = _Handler(Repeats(settings.repeats_max, _WINDOW_S))
    handler.setFormatter(
        _Json(model)
        if style == "json"
        else logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
    )
    logging.basicConfig(level=settings.level.upper(), handlers=[handler], force=True)
    # Libraries speak through our errors; their own lines below a warning are noise here.
    for library in ("jax", "numba", "aiohttp", "asyncio"):
        logging.getLogger(library).setLevel(max(logging.WARNING, logging.getLogger().level))
    # aiokafka tells every attempt of an outage as an error of its own; ours says once what it means.
    logging.getLogger("aiokafka").setLevel(logging.NOTSET if settings.level == "debug" else logging.CRITICAL)
    # At debug it writes out each request, and so the passwords that are sent.
    logging.getLogger("aiokafka.conn").setLevel(logging.INFO if settings.level == "debug" else logging.NOTSET)
