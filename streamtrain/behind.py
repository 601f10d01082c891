"""For how long what follows the log has lacked an epoch."""

from __future__ import annotations

from collections import deque

__all__ = ["Behind"]

# Looks that are remembered: while a follower stands still only the oldest counts.
_MARKS_MAX = 1024


class Behind:
    """Told now and then where head and follower stand, it tells since when the follower's next epoch has been there.

    A follower that is one epoch behind at every look, because it works, is not late: each time it is another epoch.
    """

    def __init__(self) -> None:
        self._marks: deque[tuple[int, float]] = deque()

    def see(self, head: int, done: int, now_s: float) -> float:
        """Seconds for which the follower has lacked its next epoch, less at most the time between two looks.

        Args:
          head: the newest durable epoch; never less than at the look before.
          done: the newest epoch that the follower has; -1: none.
          now_s: monotonic time.
        """
        while self._marks and self._marks[0][0] <= done:
            self._marks.popleft()
        newest = self._marks[-1][0] if self._marks else done
        if head > newest and len(self._marks) < _MARKS_MAX:
            self._marks.append((head, now_s))
        return now_s - self._marks[0][1] if self._marks else 0.0
