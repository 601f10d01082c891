"""The probes and the status page, asked over a socket."""

from __future__ import annotations

import aiohttp

from streamtrain.config import HttpSettings
from streamtrain.health import Health
from streamtrain.http import serve
from streamtrain.metrics import Metrics
from streamtrain.status import StatusBoard, page
from streamtrain.training.pulse import Pulse


async def test_livez_fails_while_the_trainer_hangs_and_readyz_until_it_is_ready() -> None:
    now_s = 0.0
    pulse, health = Pulse(lambda: now_s), Health()
    health.watch(pulse)
    metrics = Metrics()
    board = StatusBoard("clicks", {}, metrics, health, 60)
    async with (
        serve(HttpSettings(port=0, trainer_silent_max_s=60), metrics, health, board) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client,
    ):

        async def get(path: str) -> tuple[int, object]:
            async with client.get(path) as answer:
                return answer.status, await answer.json()

        assert await get("/livez") == (200, {"live": True, "phase": "starting", "trainer_silent_s": 0.0})
        assert await get("/readyz") == (503, {"ready": False, "phase": "starting"})
        assert await get("/startupz") == (503, {"started": False, "phase": "starting"})
        health.set_ready()
        pulse.beat()
        now_s = 60.5
        assert await get("/livez") == (503, {"live": False, "phase": "learning", "trainer_silent_s": 60.5})
        assert await get("/readyz") == (200, {"ready": True, "phase": "learning"})
        health.say("taking over")
        assert await get("/startupz") == (200, {"started": True, "phase": "taking over"})
        pulse.beat()
        assert (await get("/livez"))[0] == 200


async def test_the_page_and_what_it_shows_are_served() -> None:
    metrics, health = Metrics(), Health()
    board = StatusBoard("clicks", {"seed": 7}, metrics, health, 60)
    async with (
        serve(HttpSettings(port=0), metrics, health, board) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client,
    ):
        async with client.get("/") as answer:
            assert (answer.status, answer.content_type) == (200, "text/html")
            assert "unsafe-inline" not in answer.headers["Content-Security-Policy"]
            assert await answer.read() == page().html
        metrics.samples.inc(7)
        board.look()
        async with client.get("/status.json") as answer:
            state = await answer.json()
        assert (state["model"], state["configuration"]) == ("clicks", {"seed": 7})
        assert state["figures"]["samples"] == 7
