"""Decides which lines of a log are one too many of their kind. A plain object: it reads no clock and writes nothing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

__all__ = ["Repeats", "Withheld"]

_KINDS_MAX = 256


@dataclass(frozen=True, slots=True)
class Withheld:
    """Lines of one kind that were not written.

    Attributes:
      kind: as `Repeats.admits` was told.
      count: how many.
      last: the text of the last of them.
    """

    kind: Hashable
    count: int
    last: str


@dataclass(slots=True)
class _Window:
    begin_s: float
    written: int = 0
    withheld: int = 0
    last: str = ""


class Repeats:
    """Lets so many lines of a kind through in a window of time; the window of a kind begins with a line of it.

    It knows the 256 kinds whose windows began last; of more, those are forgotten that began first.

    Args:
      lines_max: of a kind in a window, >= 1.
      window_s: how long a window is.
    """

    def __init__(self, lines_max: int, window_s: float) -> None:
        self._lines_max, self.window_s = lines_max, window_s
        # By kind, in the order in which they began.
        self._windows: OrderedDict[Hashable, _Window] = OrderedDict()

    def admits(self, kind: Hashable, text: str, now_s: float) -> bool:
        """Whether a line is to be written. Call `ended` first."""
        window = self._windows.get(kind)
        if window is None:
            window = self._windows[kind] = _Window(now_s)
        if window.written < self._lines_max:
            window.written += 1
            return True
        window.withheld, window.last = window.withheld + 1, text
        return False

    def ended(self, now_s: float) -> list[Withheld]:
        """Closes windows that are over, or are too many; what they withheld is to be told."""
        told = []
        while self._windows:
            kind, window = next(iter(self._windows.items()))
            # A clock that was set back ends them all: none may stay shut for as long as it went back.
            over = not window.begin_s <= now_s < window.begin_s + self.window_s
            if not over and len(self._windows) < _KINDS_MAX:
                break
            del self._windows[kind]
            if window.withheld:
                told.append(Withheld(kind, window.withheld, window.last))
        return told
