"""The worker's web server: metrics, health, figures, orders, and pages to publish and to probe.

It runs also while Kafka does not answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import cast

from aiohttp import web
from aiohttp.http import HttpProcessingError
from aiohttp.typedefs import Handler
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from order_relay.deliveries.lookup import ROUTED_HEADER, VIEW_HEADER
from order_relay.model.order_paid import MAX_TEXT_ID_LENGTH, is_order_id
from order_relay.monitoring.health import Health, Report
from order_relay.publishing.publisher import Publisher
from order_relay.web.access import Access
from order_relay.web.connections import Connection, ConnectionLimits, Connections
from order_relay.web.console.pages import Console
from order_relay.web.consumer import ServedConsumer
from order_relay.web.order_paid_page import Limits, OrderPaidPage
from order_relay.web.request_body import Refused

logger = logging.getLogger(__name__)

# The parameter of a query.
CONSUMER = "consumer"
# For requests under way. If the publisher is closed first, they end soon.
STOP_SECONDS = 5.0
# This share of connections may post orders; the rest stays free for health checks and pages.
SHARE_OF_ORDERS = 0.9
NOT_AN_ID = f"must be a whole number, or 1 to {MAX_TEXT_ID_LENGTH} printable characters"


class WebServer:
    """Serves the pages."""

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        consumers: Mapping[str, ServedConsumer],
        *,
        console: Console | None = None,
        publisher: Publisher | None = None,
        access: Access | None = None,
        limits: Limits | None = None,
        on_rejected: Callable[[str], None] = lambda _: None,
        connections: ConnectionLimits | None = None,
        on_closed: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Prepare the server; ``start`` binds the port.

        Args:
            host: The address to serve on.
            port: The port.
            registry: The metrics.
            consumers: The consumers by name. ``?consumer=<name>`` selects one. Without it, pages
                about one consumer show the first, and health shows all.
            console: The pages for people; None: without them.
            publisher: Publishes posted orders; None: without that page. The caller closes it, at
                best before ``stop``; its database must outlive the server.
            access: Decides who may read and post; None: without a token, from loopback only.
            limits: Limits of posted orders under way.
            on_rejected: See ``OrderPaidPage``.
            connections: Limits of all connections.
            on_closed: See ``Connections``.
        """
        self.host = host
        self._port = port
        self._registry = registry
        self._consumers = consumers
        self._console = console
        self._access = access = access or Access(None)
        self._connections = Connections(connections or ConnectionLimits(), on_closed=on_closed)
        most_orders = max(int(SHARE_OF_ORDERS * self._connections.limits.connections), 1)
        limits = limits or Limits()
        limits = replace(limits, requests=min(limits.requests, most_orders))
        self._order_paid = (
            OrderPaidPage(publisher, access, limits=limits, on_rejected=on_rejected)
            if publisher
            else None
        )
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None

    async def start(self) -> None:
        """Bind the port and serve.

        Raises:
            OSError: The port cannot be bound.
        """
        app = web.Application(middlewares=[self._connections.middleware, self._check_name])
        app.on_response_prepare.append(_add_headers)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/health/live", partial(self._health, Health.live))
        app.router.add_get("/health/ready", partial(self._health, Health.ready))
        app.router.add_get(r"/orders/{order_id:[\s\S]*}", self._order)
        app.router.add_get("/stats", self._stats)
        app.router.add_get("/history", self._history)
        app.router.add_post("/probe", self._probe)
        if self._console is not None:
            self._console.add_to(app.router)
        if self._order_paid is not None:
            self._order_paid.add_to(app.router)
        self._runner = web.AppRunner(app, shutdown_timeout=STOP_SECONDS)
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        connect = partial(
            Connection,
            self._connections,
            cast(web.Server, self._runner.server),
            loop=loop,
            access_log=None,
            logger=_connection_logger(),
            auto_decompress=False,  # compressed bodies are refused
        )
        self._listener = await loop.create_server(connect, self.host, self._port)

    @property
    def port(self) -> int:
        """The bound port, also if 0 was given."""
        if self._listener is None or not self._listener.sockets:
            return self._port
        return int(self._listener.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop serving when requests under way have ended, after 5 s at the latest.

        After that an event that is being published is still published, without an answer.
        """
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._console is not None:
            await self._console.close()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @web.middleware
    async def _check_name(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        # Health checks use any name, and show no data. Pages to post to check access themselves.
        any_name = request.method == "POST" or request.path.startswith("/health/")
        if not any_name:
            self._access.check_name(request)
        return await handler(request)

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def _health(self, ask: Callable[[Health], Report], request: web.Request) -> web.Response:
        """Answer for the selected consumer, or for all; if one fails, the worker fails."""
        if CONSUMER in request.query or len(self._consumers) == 1:
            report = ask(self._selected(request).health)
            return _answer(ok=report.ok, **report.reasons)
        reports = {name: ask(one.health) for name, one in self._consumers.items()}
        return _answer(
            ok=all(report.ok for report in reports.values()),
            consumers={
                name: {"status": _status(report.ok), **report.reasons}
                for name, report in reports.items()
            },
        )

    async def _stats(self, request: web.Request) -> web.Response:
        figures = self._selected(request).stats.figures()
        return web.json_response({**figures, "consumers": list(self._consumers)})

    async def _history(self, request: web.Request) -> web.Response:
        return web.json_response(self._selected(request).history.as_json())

    async def _order(self, request: web.Request) -> web.Response:
        order_id = request.match_info["order_id"]
        if not is_order_id(order_id):
            raise Refused(400, f"orderId {NOT_AN_ID}")
        lookup = self._selected(request).orders
        routed = ROUTED_HEADER in request.headers
        if lookup is None:
            # 404 to another worker, which has a table, would mean that the order is unknown.
            status = 503 if routed else 404
            raise Refused(status, "the deliveries table is switched off (DELIVERIES_STORE=off)")
        view = request.headers.get(VIEW_HEADER)
        found = await lookup.find(order_id, here_only=routed, view=view)
        return web.json_response(found.body, status=found.status)

    async def _probe(self, request: web.Request) -> web.Response:
        self._access.check(request)
        if refused := self._selected(request).dispatcher.probe_now():
            raise Refused(409, refused)
        logger.info("Probe asked for, it goes at once")
        return web.json_response({"probing": True}, status=202)

    def _selected(self, request: web.Request) -> ServedConsumer:
        """Return the consumer that the request names, or the first.

        Raises:
            Refused: No consumer of this worker has that name.
        """
        name = request.query.get(CONSUMER)
        if name is None:
            return next(iter(self._consumers.values()))
        try:
            return self._consumers[name]
        except KeyError:
            known = ", ".join(self._consumers)
            text = f"consumer {name[:80]!r} is not one of this worker's: {known}"
            raise Refused(404, text) from None


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    # Answers have ids of orders and text of targets: not for caches, and never shown as HTML.
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Cache-Control", "no-store")


def _connection_logger() -> logging.Logger:
    """Return aiohttp's logger, without errors about malformed requests, which get a 400."""
    connections = logger.getChild("connections")
    if not connections.filters:
        connections.addFilter(
            lambda record: (
                not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))
            )
        )
    return connections


def _answer(*, ok: bool, **reasons: object) -> web.Response:
    return web.json_response({"status": _status(ok), **reasons}, status=200 if ok else 503)


def _status(ok: bool) -> str:
    return "ok" if ok else "failing"
