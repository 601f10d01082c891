"""The daemon's HTTP side: the status page `/` with `/status.json`, `/metrics`, `/startupz`, `/livez`, `/readyz`."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from streamtrain.config import HttpSettings
from streamtrain.health import Health
from streamtrain.http_guard import guarded, listening
from streamtrain.metrics import Metrics
from streamtrain.status import StatusBoard, page

__all__ = ["serve"]

logger = logging.getLogger(__name__)


@asynccontextmanager
async def serve(
    settings: HttpSettings, metrics: Metrics, health: Health, board: StatusBoard
) -> AsyncIterator[int]:
    """Serves while the context is open; yields the port that is bound.

    Raises:
      ConfigError: the address cannot be bound, or the token cannot be read.
    """

    async def show_page(_: web.Request) -> web.Response:
        return web.Response(body=page().html, headers=page().headers)

    async def show_status(_: web.Request) -> web.Response:
        # JSON has no NaN: orjson writes null.
        return web.Response(body=orjson.dumps(board.describe()), content_type="application/json")

    async def show_metrics(_: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def started(_: web.Request) -> web.Response:
        answer = {"started": health.started, "phase": health.phase}
        return web.json_response(answer, status=200 if health.started else 503)

    async def live(_: web.Request) -> web.Response:
        silent_s = health.silent_s
        # Answering at all is proof of the loop, which feeds the trainer; the trainer's own thread is told of.
        is_live = silent_s <= settings.trainer_silent_max_s
        answer = {"live": is_live, "phase": health.phase, "trainer_silent_s": round(silent_s, 3)}
        return web.json_response(answer, status=200 if is_live else 503)

    async def ready(_: web.Request) -> web.Response:
        return web.json_response(
            {"ready": health.ready, "phase": health.phase}, status=200 if health.ready else 503
        )

    app = guarded(settings)
    app.add_routes(
        [
            web.get("/", show_page),
            web.get("/status.json", show_status),
            web.get("/metrics", show_metrics),
            web.get("/startupz", started),
            web.get("/livez", live),
            web.get("/readyz", ready),
        ]
    )
    async with listening(app, settings) as port:
        logger.info("metrics and probes at http://%s:%d/metrics, for people at /", settings.host, port)
        yield port
