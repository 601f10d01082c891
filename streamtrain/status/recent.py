"""The last warnings and errors that this process logged."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["RecentProblems"]

_KINDS_MAX = 50
_CHARACTERS_MAX = 2000
# Ours; libraries speak through our errors.
_LOGGERS = ("streamtrain", "consumers", "exporters")


class RecentProblems(logging.Handler):
    """Keeps the newest line of each of the last 50 kinds. Two lines are of a kind where the same words hold other values."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._kinds: OrderedDict[tuple[str, str], dict[str, Any]] = OrderedDict()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes down what is logged while the context is open."""
        for name in _LOGGERS:
            logging.getLogger(name).addHandler(self)
        try:
            yield
        finally:
            for name in _LOGGERS:
                logging.getLogger(name).removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Called by `logging`, one thread at a time."""
        kind = record.name, str(record.msg)
        times = self._kinds.pop(kind, {"times": 0})["times"] + 1
        text = record.getMessage()
        self._kinds[kind] = {
            "at_ms": int(record.created * 1000),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": text if len(text) <= _CHARACTERS_MAX else text[: _CHARACTERS_MAX - 3] + "...",
            "times": times,
        }
        while len(self._kinds) > _KINDS_MAX:
            self._kinds.popitem(last=False)

    def describe(self) -> list[dict[str, Any]]:
        """Newest first: `at_ms`, `level`, `logger`, `message`, and `times`: how many of its kind there were."""
        assert self.lock is not None
        with self.lock:
            return [dict(problem) for problem in reversed(self._kinds.values())]
