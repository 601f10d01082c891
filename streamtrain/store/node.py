"""One Redis server and its few connections.

redis-py brings the connection (TCP, TLS, unix socket, authentication, the protocol); the pool is ours, because the
clients of redis-py retry by themselves, which would run a write twice behind our back, and share connections between
a cancelled call and the next one. Here a connection carries one exchange at a time, and any that did not end with
a whole answer is torn down.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from redis.asyncio.connection import AbstractConnection, Connection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import AskError, MovedError, NoScriptError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from streamtrain.errors import ConfigError, StoreUnavailable
from streamtrain.store.address import Address
from streamtrain.store.failures import failure
from streamtrain.store.settings import StoreSettings
from streamtrain.tls import ClientTls

__all__ = ["Argument", "Node", "connector", "no_redis"]

Argument = str | bytes | int
"""What a command is made of."""


class _Credentials(CredentialProvider):
    """Reads the password for each connection, so that one that was replaced counts from the next on."""

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """What AUTH is told."""
        try:
            password = self._settings.password() or ""
        except ConfigError as error:
            # At a start it is told as it is; later the file is being replaced, and is there soon.
            raise RedisConnectionError(str(error)) from error
        username = self._settings.endpoint.username
        return (password,) if username is None else (username, password)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        """The same: a small file is read faster than handed to a thread."""
        return self.get_credentials()


class _TlsConnection(Connection):
    """As redis-py's own, with a context that follows its files."""

    def __init__(self, *, tls: ClientTls, **options: Any) -> None:
        super().__init__(**options)
        self._tls = tls

    def _connection_arguments(self) -> dict[str, Any]:
        return {**super()._connection_arguments(), "ssl": self._tls}


def connector(settings: StoreSettings) -> Callable[[Address], AbstractConnection]:
    """A function that makes a connection, not yet connected, to an address.

    Raises:
      ConfigError: the password, a certificate or a key cannot be read.
    """
    endpoint = settings.endpoint
    options: dict[str, Any] = {
        "db": endpoint.database,
        "client_name": "streamtrain",
        # Telling the library's version takes two commands, and a right that old servers do not know.
        "driver_info": None,
        # RESP2: every answer here is a string, a number or a list of them, and old servers know it.
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        # The caller's deadline covers connecting, sending and reading as a whole.
        "socket_timeout": None,
        "socket_connect_timeout": settings.timeout_s,
    }
    if settings.password() is not None:
        options["credential_provider"] = _Credentials(settings)
    elif endpoint.username is not None:
        options["username"] = endpoint.username
    if endpoint.tls:
        names = "store.tls_ca_file, store.tls_cert_file and store.tls_key_file"
        tls = ClientTls(settings.tls_ca_file, settings.tls_cert_file, settings.tls_key_file, names)

    def connect(address: Address) -> AbstractConnection:
        if not address.port:
            return UnixDomainSocketConnection(path=address.host, **options)
        if endpoint.tls:
            return _TlsConnection(host=address.host, port=address.port, tls=tls, **options)
        return Connection(host=address.host, port=address.port, **options)

    return connect


class Node:
    """One server: at most `connections_max` connections, each carrying one exchange at a time.

    Args:
      address: where it listens.
      connect: makes a connection.
      connections_max: callers past it wait for their turn, which every holder's timeout bounds.
      timeout_s: of one exchange.
    """

    def __init__(
        self,
        address: Address,
        connect: Callable[[Address], AbstractConnection],
        connections_max: int,
        timeout_s: float,
    ) -> None:
        self.address = address
        self._connect, self._timeout_s = connect, timeout_s
        self._turns = asyncio.Semaphore(connections_max)
        self._idle: list[AbstractConnection] = []
        self._closed = False

    async def call(self, *command: Argument, asking: bool = False) -> Any:
        """Sends one command and returns its answer. Does not retry.

        Args:
          command: its words.
          asking: sends ASKING before it, on the same connection: the slot is moving to this node.

        Raises:
          MovedError, AskError: the slot is elsewhere.
          NoScriptError: EVALSHA of a script that the server does not have.
          StoreUnavailable, StoreRefused: anything else. The command may have run.

        A cancelled call may have run too; its connection is gone, so its answer can reach nobody else.
        """
        async with self._turns:
            connection = self._idle.pop() if self._idle else self._connect(self.address)
            try:
                async with asyncio.timeout(self._timeout_s):
                    answer = await _exchange(connection, command, asking)
            except (RedisError, OSError) as error:
                await _tear_down(connection)
                # A server that went away closed the idle ones too: do not meet them one failure after the other.
                await self._disconnect_idle()
                raise failure(error, str(self.address), self._timeout_s) from error
            except _NOT_REDIS as error:
                await _tear_down(connection)
                raise no_redis(self.address, error) from error
            except BaseException:
                await _tear_down(connection)
                raise
            await self._park(connection)
        if isinstance(answer, (MovedError, AskError, NoScriptError)):
            raise answer
        if isinstance(answer, ResponseError):
            raise failure(answer, str(self.address), self._timeout_s) from answer
        return answer

    async def close(self) -> None:
        """Closes idle connections now, busy ones when their exchange ends. Safe to call twice."""
        self._closed = True
        await self._disconnect_idle()

    async def _park(self, connection: AbstractConnection) -> None:
        if self._closed:
            await connection.disconnect()
        else:
            self._idle.append(connection)

    async def _disconnect_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.disconnect(nowait=not self._closed)


# What redis-py's parser raises of bytes that are none of the protocol's.
_NOT_REDIS = (ValueError, TypeError, LookupError, RecursionError)


def no_redis(address: Address, why: object) -> StoreUnavailable:
    """The error to raise of an answer that no Redis gives."""
    return StoreUnavailable(
        f"what listens at {address} does not answer as a Redis does ({why}); check store.url"
    )


async def _exchange(connection: AbstractConnection, command: tuple[Argument, ...], asking: bool) -> Any:
    """Sends the command, connecting first where needed; an answer that is an error is returned, not raised."""
    commands = [("ASKING",), command] if asking else [command]
    await connection.send_packed_command(connection.pack_commands(commands))
    answer: Any = None
    for _ in commands:
        try:
            answer = await connection.read_response()
        except ResponseError as error:
            answer = error
    return answer


async def _tear_down(connection: AbstractConnection) -> None:
    # disconnect() alone would keep trying to send what is left in the buffer, for ever where the server hangs.
    if (writer := connection._writer) is not None:
        writer.transport.abort()
    await connection.disconnect(nowait=True)
