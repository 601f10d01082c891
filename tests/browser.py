"""A real headless Chromium, driven over its DevTools protocol (https://chromedevtools.github.io/devtools-protocol/)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.servers import Server

__all__ = ["Chromium", "Tab"]

CALL_TIMEOUT_S = 60.0
MESSAGE_BYTES_MAX = 64 << 20
REMOVALS_MAX = 100
# As root, and in a container, Chromium cannot set up its sandbox; it is pointed at our own page alone.
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


class Tab:
    """One page. Made by `chromium`.

    Attributes:
      requested: the URLs that it asked for, in order.
      complaints: what a person would see in the console as an error, and exceptions that nothing caught.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, username: str, password: str) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self._login = {"response": "ProvideCredentials", "username": username, "password": password}
        self._awaited: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._loaded = asyncio.Event()
        self.requested: list[str] = []
        self.complaints: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol; its result."""
        number = next(self._numbers)
        answered = self._awaited[number] = asyncio.get_running_loop().create_future()
        await self._send(number, method, **parameters)
        answer = await asyncio.wait_for(answered, CALL_TIMEOUT_S)
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    async def evaluate(self, script: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        found = await self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def until(self, condition: str) -> None:
        """Waits until an expression in the page is true; the page itself looks, at each of its frames."""
        await self.evaluate(
            "new Promise((done) => { const look = () => "
            f"({condition}) ? done() : setTimeout(look, 50); look(); }})"
        )

    async def open(self, url: str) -> None:
        """Goes to a page and waits until it and its script are there."""
        self._loaded.clear()
        await self.call("Page.navigate", url=url)
        await asyncio.wait_for(self._loaded.wait(), CALL_TIMEOUT_S)

    async def resize(self, width: int, height: int, *, phone: bool = False) -> None:
        """The size of the window in CSS pixels; `phone` is the viewport that a page asks for."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )

    async def prefer(self, scheme: str) -> None:
        """`light` or `dark`, as the user's system says."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def picture(self) -> bytes:
        """The whole page as PNG."""
        shot = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    async def listen(self) -> None:
        """Takes what the browser sends, until the connection ends."""
        async for message in self._socket:
            said = message.json()
            if (waiting := self._awaited.pop(said.get("id", 0), None)) is not None:
                waiting.set_result(said)
            elif "method" in said:
                await self._take(said["method"], said["params"])

    async def _take(self, event: str, of: dict[str, Any]) -> None:
        match event:
            case "Page.loadEventFired":
                self._loaded.set()
            case "Network.requestWillBeSent":
                self.requested.append(of["request"]["url"])
            case "Runtime.exceptionThrown":
                self.complaints.append(str(of["exceptionDetails"]))
            case "Log.entryAdded" if of["entry"]["level"] == "error":
                self.complaints.append(f"{of['entry']['text']} {of['entry'].get('url', '')}")
            case "Fetch.requestPaused":
                await self._send(next(self._numbers), "Fetch.continueRequest", requestId=of["requestId"])
            case "Fetch.authRequired":
                await self._send(
                    next(self._numbers),
                    "Fetch.continueWithAuth",
                    requestId=of["requestId"],
                    authChallengeResponse=self._login,
                )

    async def _send(self, number: int, method: str, **parameters: Any) -> None:
        await self._socket.send_json({"id": number, "method": method, "params": parameters})


class Chromium(Server):
    """A browser with a profile of its own."""

    name = "chromium"

    def __init__(self) -> None:
        super().__init__(Path(tempfile.mkdtemp(prefix="streamtrain-chromium-")))

    def close(self) -> None:
        """Ends the browser, which ends its helpers, and removes the profile."""
        group = self.pid if self.running else None
        self.stop()
        if group is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        # One that is still ending may write into the profile meanwhile.
        for _ in range(REMOVALS_MAX):
            shutil.rmtree(self.folder, ignore_errors=True)
            if not self.folder.exists():
                return
            time.sleep(0.05)

    @asynccontextmanager
    async def tab(self, username: str = "", password: str = "") -> AsyncIterator[Tab]:
        """An empty tab; closed with the context. With a password it answers who asks for one."""
        async with aiohttp.ClientSession(f"http://127.0.0.1:{self.port}") as client:
            async with client.put("/json/new?about:blank") as answer:
                target = await answer.json()
            async with client.ws_connect(
                target["webSocketDebuggerUrl"], max_msg_size=MESSAGE_BYTES_MAX
            ) as socket:
                tab = Tab(socket, username, password)
                async with asyncio.TaskGroup() as group:
                    listening = group.create_task(tab.listen())
                    for domain in ("Page", "Runtime", "Network", "Log"):
                        await tab.call(f"{domain}.enable")
                    if password:
                        await tab.call("Fetch.enable", handleAuthRequests=True)
                    yield tab
                    listening.cancel()
            async with client.get(f"/json/close/{target['id']}"):
                pass

    def _prepare(self) -> None:
        """It chooses a port by itself, and writes it down when it listens."""

    def _command(self) -> list[str]:
        self._address.unlink(missing_ok=True)
        return ["chromium", *OPTIONS, f"--user-data-dir={self.folder}", "about:blank"]

    def _ready(self) -> bool:
        if not (self._address.exists() and (lines := self._address.read_text().split())):
            return False
        self.port = int(lines[0])
        return True

    @property
    def _address(self) -> Path:
        return self.folder / "DevToolsActivePort"
