"""Watches directories from outside (inotify, through ctypes) and acts at the very instant a named point is passed."""

from __future__ import annotations

import ctypes
import os
import re
import struct
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

__all__ = ["POINTS", "Point", "Watch"]

_MODIFY, _MOVED_TO, _CREATE, _DELETE = 0x2, 0x80, 0x100, 0x200
_EVENT = struct.Struct("iIII")
_EPOCH_ASIDE, _BASE_ASIDE = r"\d+\.[0-9a-f]{8}\.\d{20}\.safetensors", r"\d+\.[0-9a-f]{8}\.base\..*"

Point = tuple[str, int, str]
"""A directory below the watched folder, the kind of event there, and what the file's name matches."""

POINTS: dict[str, Point] = {
    "append: file made": ("model/tmp", _CREATE, _EPOCH_ASIDE),
    "append: being written": ("model/tmp", _MODIFY, _EPOCH_ASIDE),
    "append: linked": ("model/epochs", _CREATE, r".*"),
    "append: done": ("model/tmp", _DELETE, _EPOCH_ASIDE),
    "fold: file made": ("model/tmp", _CREATE, _BASE_ASIDE),
    "fold: being written": ("model/tmp", _MODIFY, _BASE_ASIDE),
    "fold: linked": ("model/bases", _CREATE, r".*"),
    "collection: epoch removed": ("model/epochs", _DELETE, r".*"),
    "export: file made": ("exports/tmp", _CREATE, r".*\d{20}\.safetensors"),
    "export: delta named": ("exports/deltas", _MOVED_TO, r".*"),
    "export: manifest made": ("exports/tmp", _CREATE, r".*manifest\.json"),
    "export: manifest published": ("exports", _MOVED_TO, r"manifest\.json"),
    "export: base named": ("exports/bases", _MOVED_TO, r".*"),
}


class Watch:
    """A thread that reads inotify events of a folder's log and exports.

    Attributes:
      passed: by point, how often it was seen.
    """

    def __init__(self, folder: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.inotify_init1(os.O_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self.passed: Counter[str] = Counter()
        self._folder = folder
        self._points: dict[tuple[int, int], list[tuple[str, re.Pattern[str]]]] = {}
        self._descriptors: dict[str, int] = {}
        self._guard = threading.Lock()
        self._armed: dict[str, Callable[[str], None]] = {}
        self._always: dict[str, Callable[[str], None]] = {}
        for name, (directory, kind, pattern) in POINTS.items():
            (folder / directory).mkdir(parents=True, exist_ok=True)
            key = (self._add(directory), kind)
            self._points.setdefault(key, []).append((name, re.compile(pattern)))
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def _add(self, directory: str) -> int:
        if directory not in self._descriptors:
            mask = _MODIFY | _MOVED_TO | _CREATE | _DELETE
            path = os.fsencode(self._folder / directory)
            self._descriptors[directory] = self._libc.inotify_add_watch(self._descriptor, path, mask)
            if self._descriptors[directory] < 0:
                raise OSError(ctypes.get_errno(), f"inotify_add_watch {directory}")
        return self._descriptors[directory]

    def always(self, point: str, act: Callable[[str], None]) -> None:
        """Calls `act(file name)` each time, after what is armed there."""
        self._always[point] = act

    def at(self, point: str, act: Callable[[str], None], timeout_s: float) -> bool:
        """Calls `act(file name)` once in the watching thread, when the point is passed next. False: not in time."""
        done = threading.Event()

        def once(name: str) -> None:
            act(name)
            done.set()

        with self._guard:
            self._armed[point] = once
        if done.wait(timeout_s):
            return True
        with self._guard:
            # Where it is gone, the thread has taken it and acts this moment.
            taken = self._armed.pop(point, None) is None
        return taken and done.wait(timeout_s)

    def _run(self) -> None:
        while True:
            data, at = os.read(self._descriptor, 65_536), 0
            while at < len(data):
                watched, mask, _, length = _EVENT.unpack_from(data, at)
                name = data[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0").decode()
                at += _EVENT.size + length
                for kind in (_MODIFY, _MOVED_TO, _CREATE, _DELETE):
                    if mask & kind:
                        self._pass(self._points.get((watched, kind), []), name)

    def _pass(self, points: list[tuple[str, re.Pattern[str]]], name: str) -> None:
        for point, pattern in points:
            if not pattern.fullmatch(name):
                continue
            with self._guard:
                act = self._armed.pop(point, None)
            if act is not None:
                act(name)
            self.passed[point] += 1
            if (always := self._always.get(point)) is not None:
                always(name)
