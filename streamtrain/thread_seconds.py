"""Processor time by thread: what a wall clock cannot tell where threads share the cores."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

__all__ = ["ThreadSeconds"]

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_NUMBER = re.compile(r"[-_ /]*\d+$")
"""What tells apart threads of a pool, and would make a label of each."""
_OTHER = "other"
_MAIN = "loop"
_KNOWN = frozenset(
    {"trainer", "kernels", "decode", "writer", "kafka", "kafka-group", "files", "asyncio", "recovery"}
    | {"lmdb-write", "lmdb-read", "xla", _MAIN}
)
"""The label's values, and `other`: bounded, whatever a plug-in calls its threads."""


class ThreadSeconds(Collector):
    """Seconds of processor time of this process by kind of thread, from Linux' `/proc/self/task` (proc(5)).

    A thread that ends stays counted, but for what it did after the last look.

    Args:
      name: of the metric, without `_total`.
      text: its help.
      tasks: where threads are listed; another folder in tests.
    """

    def __init__(self, name: str, text: str, tasks: Path = Path("/proc/self/task")) -> None:
        self._name, self._text, self._tasks = name, text, tasks
        # By thread, its kind and seconds when last seen; by kind, those of threads that have ended.
        self._seen: dict[int, tuple[str, float]] = {}
        self._ended: dict[str, float] = {}
        self._lock = threading.Lock()

    def collect(self) -> Iterator[CounterMetricFamily]:
        """See prometheus_client's `Collector`."""
        family = CounterMetricFamily(self._name, self._text, labels=["thread"])
        with self._lock:
            self._look()
            seconds = dict(self._ended)
            for kind, spent in self._seen.values():
                seconds[kind] = seconds.get(kind, 0.0) + spent
        for kind in sorted(seconds):
            family.add_metric([kind], seconds[kind])
        yield family

    def _look(self) -> None:
        names = {thread.native_id: thread.name for thread in threading.enumerate()}
        now: dict[int, tuple[str, float]] = {}
        for task in self._tasks.iterdir() if self._tasks.is_dir() else ():
            try:
                # The command, second of the fields, may hold spaces: it stands in parentheses.
                start, _, fields = (task / "stat").read_text().rpartition(")")
            except (FileNotFoundError, ProcessLookupError):
                continue  # It ended since it was listed.
            number = int(task.name)
            user, system = fields.split()[11:13]
            kind = _kind(names.get(number), start.partition("(")[2], number == os.getpid())
            now[number] = kind, (int(user) + int(system)) / _TICKS_A_SECOND
        for number, (kind, spent) in self._seen.items():
            # A number may be given anew: then its seconds begin again.
            if number not in now or now[number][1] < spent:
                self._ended[kind] = self._ended.get(kind, 0.0) + spent
        self._seen = now


def _kind(name: str | None, command: str, main: bool) -> str:
    """The label of a thread, by the name that Python knows it by, or else the system's."""
    if main:
        return _MAIN
    if name is None:
        return "xla" if command.startswith("tf_XLA") else _OTHER
    kind = _NUMBER.sub("", name)
    return kind if kind in _KNOWN else _OTHER
