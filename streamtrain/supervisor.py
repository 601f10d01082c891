"""Tells systemd (`Type=notify`) how the process stands: ready, stopping, alive, and a line for `systemctl status`.

The protocol of sd_notify(3): datagrams of `NAME=value` lines to the Unix socket that `NOTIFY_SOCKET` names. Other
supervisors speak it as well. Without the variable nothing is told.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

__all__ = ["Supervisor"]

logger = logging.getLogger(__name__)

_INTERVAL_S = 1.0
# A start may take as long as it needs (a long log, a store that is away) while it says that it lives. On a crowded
# machine it was silent for over a minute, while JAX was imported.
_START_EXTENSION_S = 300
_STATUS_CHARACTERS_MAX = 500


class Supervisor:
    """The socket of whoever started this process. Belongs to one thread; never blocks and never raises.

    Args:
      address: `NOTIFY_SOCKET`: a path, or a name in the abstract namespace after `@`; "" tells nobody.
      watchdog_s: within this time a sign of life is expected; None where none is.
      clock: seconds, never going back.
    """

    def __init__(
        self, address: str, watchdog_s: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._interval_s = _INTERVAL_S if watchdog_s is None else min(_INTERVAL_S, watchdog_s / 4)
        self._watched, self._clock = watchdog_s is not None, clock
        self._started = self._failing = False
        self._told, self._told_at = "", -float("inf")

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Supervisor:
        """The supervisor that an environment names.

        A watchdog that is meant for another process (`WATCHDOG_PID`: a parent's, inherited) is none.
        """
        address = environment.get("NOTIFY_SOCKET", "")
        period_us = environment.get("WATCHDOG_USEC", "")
        ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        watched = ours and period_us.isdecimal() and int(period_us) > 0
        return cls(address, int(period_us) / 1e6 if watched else None)

    @property
    def listens(self) -> bool:
        """Whether there is anybody to tell."""
        return bool(self._address)

    def tell(self, status: str, *, ready: bool, live: bool) -> None:
        """Says how things stand; to be called several times a second, of which most calls find nothing new to say.

        Args:
          status: one line for people.
          ready: what it was started for can begin; told once, the first time.
          live: false withholds the sign of life, so that a watchdog ends the process when its time is over. Before
            readiness that sign asks for more time to start instead: systemd's watchdog runs from the first one on, and
            a start may be silent for longer than a daemon that learns.
        """
        begins = ready and not self._started
        now_s = self._clock()
        if not begins and status == self._told and now_s - self._told_at < self._interval_s:
            return
        lines = [f"STATUS={_line(status)}"]
        if begins:
            lines.append("READY=1")
        elif not self._started and live:
            lines.append(f"EXTEND_TIMEOUT_USEC={_START_EXTENSION_S * 1_000_000}")
        if self._watched and live and (self._started or begins):
            lines.append("WATCHDOG=1")
        if self._send(lines):
            self._started = self._started or begins
            self._told, self._told_at = status, now_s

    @contextmanager
    def reloading(self, status: str) -> Iterator[None]:
        """Inside, settings are read again. Nothing before readiness: a start is not over by it."""
        if self._started:
            self._send(
                ["RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", f"STATUS={_line(status)}"]
            )
        try:
            yield
        finally:
            if self._started:
                self._send(["READY=1"])
            self._told_at = -float("inf")

    def stopping(self, status: str) -> None:
        """The process is about to end: by request, or by the fault that `status` names."""
        self._send(["STOPPING=1", f"STATUS={_line(status)}"])

    def _send(self, lines: list[str]) -> bool:
        """Whether the datagram was taken. One that was not is repeated by the next `tell`."""
        if not self._address:
            return True
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.setblocking(False)
                sender.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            if not self._failing:
                logger.warning(
                    "the supervisor at NOTIFY_SOCKET cannot be told how this process is: %s", error
                )
            self._failing = True
            return False
        self._failing = False
        return True


def _line(text: str) -> str:
    """A datagram has a line for each thing that is told."""
    return " ".join(text.split())[:_STATUS_CHARACTERS_MAX]
