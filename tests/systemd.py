"""A stand-in for systemd: the receiving end of the socket that it gives to a service."""

from __future__ import annotations

import socket
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["Systemd"]


class Systemd:
    """The receiving end of NOTIFY_SOCKET, bound to a path, or to an abstract name after `@`."""

    def __init__(self, address: Path | str) -> None:
        self.address = str(address)
        self.receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.receiver.bind(f"\0{self.address[1:]}" if self.address.startswith("@") else self.address)
        self.receiver.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.receiver.close()

    def told(self) -> dict[str, str] | None:
        """The next datagram by name; None where there is none."""
        try:
            return dict(line.split("=", 1) for line in self.receiver.recv(65536).decode().split("\n"))
        except BlockingIOError:
            return None

    def all_told(self) -> list[dict[str, str]]:
        """Everything that has come by now."""
        found = []
        while (told := self.told()) is not None:
            found.append(told)
        return found
