"""Who may ask the daemon's HTTP side, and what a slow, greedy or hostile client gets; over sockets."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from streamtrain.config import HttpSettings
from streamtrain.errors import ConfigError
from streamtrain.http_guard import OPEN_PATHS, guarded, listening

TOKEN = "http-Wx9-token"
GET = b"GET %s HTTP/1.1\r\nHost: x\r\n%s\r\n"


@asynccontextmanager
async def serving(**settings: object) -> AsyncIterator[int]:
    """A guarded application of the test's own, with the paths that the daemon has."""

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({})

    made = HttpSettings(port=0, **settings)  # type: ignore[arg-type]
    app = guarded(made)
    app.add_routes([web.get(path, answer) for path in ("/", "/metrics", *OPEN_PATHS)])
    async with listening(app, made) as port:
        yield port


async def said(port: int, request: bytes) -> bytes:
    """All that is answered until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return await asyncio.wait_for(reader.read(), 30)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def status(port: int, path: bytes = b"/metrics", headers: bytes = b"") -> int:
    answer = await said(port, GET % (path, headers))
    return int(answer.split(b" ", 2)[1])


def basic(user: str, password: str) -> bytes:
    return b"Authorization: Basic " + base64.b64encode(f"{user}:{password}".encode()) + b"\r\n"


async def test_all_but_the_probes_ask_for_the_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN + "\n")
    async with serving(token_file=str(tmp_path / "token")) as port:
        bearer = f"Authorization: Bearer {TOKEN}\r\n".encode()
        for path in (b"/metrics", b"/", b"/nothing"):
            assert await status(port, path) == 401
            assert await status(port, path, bearer) != 401
        for path in (b"/livez", b"/readyz", b"/startupz"):
            assert await status(port, path) in (200, 503)
        assert await status(port, headers=basic("anyone", TOKEN)) == 200
        for wrong in (
            b"Authorization: Bearer \r\n",
            b"Authorization: Bearer " + TOKEN[:-1].encode() + b"\r\n",
            b"Authorization: " + TOKEN.encode() + b"\r\n",
            b"Authorization: Basic !!!\r\n",
            b"Authorization: Bearer \xff\xfe\r\n",
            basic(TOKEN, "x"),
        ):
            assert await status(port, headers=wrong) in (400, 401)

        (tmp_path / "token").write_text("another")
        assert await status(port, headers=bearer) == 401
        assert await status(port, headers=b"Authorization: Bearer another\r\n") == 200
        (tmp_path / "token").unlink()
        assert await status(port, headers=b"Authorization: Bearer another\r\n") == 200


async def test_a_token_that_cannot_be_read_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"http\.token_file: cannot read"):
        async with serving(token_file=str(tmp_path / "absent")):
            raise AssertionError("it listens without a token")


async def test_listening_to_everyone_without_a_token_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "token").write_text(TOKEN)
    with caplog.at_level(logging.WARNING):
        async with (
            serving(),
            serving(host="::1"),
            serving(host="0.0.0.0", token_file=str(tmp_path / "token")),
        ):
            assert "everyone" not in caplog.text
        async with serving(host="0.0.0.0"):
            assert "http.host = 0.0.0.0: everyone who reaches this address may read" in caplog.text


async def test_answers_tell_browsers_to_trust_nothing_else() -> None:
    async with serving() as port:
        head = (await said(port, GET % (b"/readyz", b""))).split(b"\r\n\r\n")[0].decode().lower()
    for header in (
        "x-content-type-options: nosniff",
        "x-frame-options: deny",
        "content-security-policy: default-src 'none'",
        "cache-control: no-store",
        "connection: close",
    ):
        assert header in head
    assert "aiohttp" not in head and "python" not in head


async def test_what_is_too_large_is_refused() -> None:
    async with serving() as port:
        assert await status(port, b"/" + b"x" * 10_000) == 400
        assert await status(port, headers=b"X: " + b"x" * 10_000 + b"\r\n") == 400
        assert await status(port, headers=b"".join(b"X%d: y\r\n" % i for i in range(100))) == 400
        assert await status(port) == 200


async def test_a_client_that_says_nothing_or_one_byte_after_the_other_is_cut_off() -> None:
    async with serving(connection_timeout_s=0.3) as port:
        # Each is read until the server ends it; the test would wait for half a minute for one that does not.
        assert await said(port, b"") == b""
        assert await said(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: ") == b""
        await said(port, b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nx")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\n")
        with pytest.raises(ConnectionError):
            for _ in range(600):
                writer.write(b"X: y\r\n")
                await writer.drain()
                await asyncio.wait({asyncio.ensure_future(reader.read(1))}, timeout=0.05)
                if reader.at_eof():
                    raise ConnectionResetError
        writer.close()
        assert await status(port) == 200


async def test_connections_beyond_the_bound_are_closed_and_the_daemon_goes_on() -> None:
    async with serving(connections_max=4) as port:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
        assert await said(port, GET % (b"/livez", b"")) == b""
        for _, writer in held:
            writer.close()
            await writer.wait_closed()
        for _ in range(100):
            if (await said(port, GET % (b"/livez", b""))).startswith(b"HTTP/1.1 200"):
                return
            await asyncio.sleep(0.02)
        raise AssertionError("places of closed connections are not given again")
