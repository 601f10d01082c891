"""A TCP proxy that breaks on command: cuts connections after so many bytes, or swallows answers."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self


class FaultyProxy:
    """Stands in front of a server on a loopback port.

    Attributes:
      port: where it listens.
      cut_after_bytes: how many more bytes of requests pass before every connection is cut, once; None never.
      mute: requests pass, answers do not.
      connections: how many were accepted so far.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self.port = 0
        self.cut_after_bytes: int | None = None
        self.mute = False
        self.connections = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def cut(self) -> None:
        """Cuts every connection now."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        self._writers |= {writer, server_writer}
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._requests(reader, server_writer))
                group.create_task(self._answers(server_reader, writer))
        except* OSError:
            pass
        finally:
            for end in (writer, server_writer):
                end.transport.abort()
                self._writers.discard(end)

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            if self.cut_after_bytes is not None:
                allowed, self.cut_after_bytes = data[: self.cut_after_bytes], self.cut_after_bytes - len(data)
                if self.cut_after_bytes < 0:
                    self.cut_after_bytes = None
                    writer.write(allowed)
                    await writer.drain()
                    self.cut()
                    return
            writer.write(data)
            await writer.drain()
        writer.transport.abort()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            if not self.mute:
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
