"""Who may ask the daemon's HTTP side, for how long, and what browsers are told about its answers."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ipaddress
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

from aiohttp import web
from aiohttp.typedefs import Handler

from streamtrain.config import HttpSettings
from streamtrain.credentials import located, secret_of_file
from streamtrain.errors import ConfigError

__all__ = ["OPEN_PATHS", "guarded", "listening"]

logger = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/startupz", "/livez", "/readyz"})
"""Kubernetes' probes send no token, and the answers tell a phase and nothing else."""

# Source: https://owasp.org/www-project-secure-headers/. A page carries its own styles and scripts, and loads nothing.
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}
_BODY_BYTES_MAX = 1024
_LINE_BYTES_MAX = 4096
_HEADERS_MAX = 64


def guarded(settings: HttpSettings) -> web.Application:
    """An application without routes that asks for the token, where there is one, and sets headers.

    Raises:
      ConfigError: the token cannot be read.
    """
    token = None if settings.token_file is None else _Token(settings.token_file)
    if token is None and not _is_loopback(settings.host):
        logger.warning(
            "http.host = %s: everyone who reaches this address may read the metrics and the settings (no secrets); "
            "set http.token_file, or let a firewall or NetworkPolicy say who",
            settings.host,
        )

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if (
            token is None
            or request.path in OPEN_PATHS
            or token.fits(request.headers.get("Authorization", ""))
        ):
            return await handler(request)
        answer = web.Response(status=401, text="the token is missing or wrong\n")
        # A line each: of several in one, Chromium reads the first alone, and asks its user for nothing.
        for challenge in ('Bearer realm="streamtrain"', 'Basic realm="streamtrain (the token as password)"'):
            answer.headers.add("WWW-Authenticate", challenge)
        return answer

    async def finish(_: web.Request, response: web.StreamResponse) -> None:
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers.pop("Server", None)
        # One request a connection: so a deadline for the connection is one for the request.
        response.force_close()
        response.headers["Connection"] = "close"

    app = web.Application(middlewares=[guard], client_max_size=_BODY_BYTES_MAX)
    app.on_response_prepare.append(finish)
    return app


@asynccontextmanager
async def listening(app: web.Application, settings: HttpSettings) -> AsyncIterator[int]:
    """Serves an application while the context is open; yields the port that is bound.

    Raises:
      ConfigError: the address cannot be bound.
    """
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        try:
            listener = await asyncio.get_running_loop().create_server(
                _doorman(runner, settings), settings.host, settings.port
            )
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; "
                "set http.port to a free one (0 picks one) or http.enabled = false"
            ) from error
        try:
            yield listener.sockets[0].getsockname()[1]
        finally:
            listener.close()
    finally:
        await runner.cleanup()


def _doorman(runner: web.AppRunner, settings: HttpSettings) -> Callable[[], asyncio.Protocol]:
    """Makes the protocol of each connection: at most `connections_max`, each ended after `connection_timeout_s`.

    The deadline holds for whatever a client does slowly or not at all: its request line, headers, body, or reading
    the answer. aiohttp by itself bounds none but idle connections.
    """
    assert runner.server is not None, "the runner was set up"
    server: web.Server = runner.server
    loop = asyncio.get_running_loop()
    limits: dict[str, Any] = {
        "max_line_size": _LINE_BYTES_MAX,
        "max_field_size": _LINE_BYTES_MAX,
        "max_headers": _HEADERS_MAX,
        "keepalive_timeout": settings.connection_timeout_s,
        "lingering_time": 1.0,
        "read_bufsize": 1 << 14,
        "access_log": None,
    }

    class Connection(web.RequestHandler):
        __slots__ = ("_deadline",)

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            # uvloop's is one, though not by its class.
            abort = cast(asyncio.Transport, transport).abort
            self._deadline = loop.call_later(settings.connection_timeout_s, abort)
            super().connection_made(transport)
            if len(server.connections) > settings.connections_max:
                abort()

        def connection_lost(self, exc: BaseException | None) -> None:
            self._deadline.cancel()
            super().connection_lost(exc)

    return lambda: Connection(server, loop=loop, **limits)


class _Token:
    """A token in a file, read at the start and again when the file was replaced."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen, self._token = self._read()

    def fits(self, authorization: str) -> bool:
        """Whether a header brings the token. The time that it takes does not depend on how much of it is right."""
        try:
            if located(self._path).stat().st_mtime_ns != self._seen:
                self._seen, self._token = self._read()
        except (ConfigError, OSError) as error:
            logger.warning(
                "http.token_file was replaced and cannot be read, the token from before counts: %s", error
            )
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                return False
        elif scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(given.encode(errors="surrogateescape"), self._token.encode())

    def _read(self) -> tuple[int, str]:
        token = secret_of_file(self._path, "http.token_file")
        return located(self._path).stat().st_mtime_ns, token


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
