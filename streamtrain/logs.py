"""Log lines on standard error: for people on a terminal, one JSON object a line elsewhere."""

from __future__ import annotations

import logging
import sys
import time

import orjson

from streamtrain.config import LoggingSettings

__all__ = ["configure_logging"]


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
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(event).decode()


def configure_logging(settings: LoggingSettings, model: str) -> None:
    """Sends every log line of the process to standard error, in the chosen format."""
    style = settings.format
    if style == "auto":
        style = "console" if sys.stderr.isatty() else "json"
    handler = logging.StreamHandler(sys.stderr)
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
    if settings.level != "debug":
        logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    else:
        # At debug it writes out each request, and so the passwords that are sent.
        logging.getLogger("aiokafka.conn").setLevel(logging.INFO)
