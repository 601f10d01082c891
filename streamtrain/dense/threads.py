"""How many threads XLA computes with. It is decided once a process, and it decides bits.

XLA splits products and sums by the number of its threads, and so rounds them in another order with another number. It never
looks at how many cores there are, nor at which thread comes first: the same number gives the same bits on any machine whose
processor has the same vector instructions (`tests/unit/dense/test_net.py`).
"""

from __future__ import annotations

import os
import threading

from streamtrain.errors import ConfigError

__all__ = ["DEFAULT", "use_threads"]

DEFAULT = 2
_VARIABLE = "PJRT_NPROC"
"""What XLA's CPU client reads when it is made: with the first array of the process."""

_deciding = threading.Lock()
_decided: int | None = None


def use_threads(count: int | None = None) -> None:
    """Says how many threads the dense half has in this process. The first call decides.

    Args:
      count: >= 1; None takes what was decided, or else the default.

    Raises:
      ConfigError: another number was decided before.
    """
    global _decided
    with _deciding:
        if _decided is None:
            _decided = count or DEFAULT
            os.environ[_VARIABLE] = str(_decided)
        elif count not in (None, _decided):
            raise ConfigError(
                f"training.dense_threads = {count}, but this process computes with {_decided} already, and cannot change: "
                "use a process of its own"
            )
