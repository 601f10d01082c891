"""A TCP proxy for chaos: cuts, delays, swallows, and tells what a request is about before it passes on."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable

__all__ = ["Proxy"]

_PIECE_BYTES = 65_536


class Proxy:
    """Stands in front of a server on a loopback port, which may come and go.

    Attributes:
      port: where it listens.
      delay_s: how long each piece waits, either way.
      mute: requests pass, answers do not.
      on_request: called with each piece of a request before it passes on.
      on_answer: called before a piece of an answer passes on.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self.port = 0
        self.delay_s = 0.0
        self.mute = False
        self.on_request: Callable[[bytes], None] = lambda _: None
        self.on_answer: Callable[[], None] = lambda: None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Listens."""
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stops listening and cuts everything."""
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """Cuts every connection now; bytes on their way are lost. May be called from any thread."""
        if threading.get_ident() != self._thread:
            self._loop.call_soon_threadsafe(self.cut)
            return
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        ends = [writer]
        with contextlib.suppress(OSError):
            try:
                server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
                self._writers.add(server_writer)
                ends.append(server_writer)
                # Whichever side ends, the other follows.
                await asyncio.wait(
                    [
                        asyncio.ensure_future(self._pass(reader, server_writer, True, ends)),
                        asyncio.ensure_future(self._pass(server_reader, writer, False, ends)),
                    ]
                )
            finally:
                for end in ends:
                    end.transport.abort()
                    self._writers.discard(end)

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        asking: bool,
        ends: list[asyncio.StreamWriter],
    ) -> None:
        try:
            while data := await reader.read(_PIECE_BYTES):
                if asking:
                    self.on_request(data)
                else:
                    self.on_answer()
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if asking or not self.mute:
                    writer.write(data)
                    await writer.drain()
        except OSError:
            pass
        finally:
            for end in ends:
                end.transport.abort()
