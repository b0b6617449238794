"""The worker's own web server: metrics and health. It answers before Kafka does."""

from __future__ import annotations

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from app.operations.health import Health, Report


class WebServer:
    """Serves ``/metrics``, ``/health/live`` and ``/health/ready``."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry, health: Health) -> None:
        """Prepare the server; ``start`` binds the port."""
        self._host = host
        self._port = port
        self._registry = registry
        self._health = health
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Serve.

        Raises:
            OSError: The port cannot be bound.
        """
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/health/live", self._live)
        app.router.add_get("/health/ready", self._ready)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port).start()

    async def stop(self) -> None:
        """Stop serving."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def _live(self, request: web.Request) -> web.Response:
        return _answer(self._health.live())

    async def _ready(self, request: web.Request) -> web.Response:
        return _answer(self._health.ready())


def _answer(report: Report) -> web.Response:
    return web.json_response(
        {"status": "ok" if report.ok else "failing", **report.reasons},
        status=200 if report.ok else 503,
    )
