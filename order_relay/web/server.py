"""The worker's own web server: metrics, health, paid orders over HTTP, and probing now.

It answers before Kafka does.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

from aiohttp import web
from aiohttp.http import HttpProcessingError
from aiohttp.typedefs import Handler
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from order_relay.deliveries.lookup import OrderLookup
from order_relay.monitoring.health import Health, Report
from order_relay.monitoring.stats import Stats
from order_relay.publishing.publisher import Publisher
from order_relay.web.access import Access
from order_relay.web.connections import Connection, ConnectionLimits, Connections
from order_relay.web.console import add_console
from order_relay.web.order_paid_page import Limits, OrderPaidPage
from order_relay.web.orders_page import OrdersPage
from order_relay.web.probe_page import ProbePage

logger = logging.getLogger(__name__)

# Of a query.
CONSUMER = "consumer"
# For requests under way; close the publisher first, then they end soon.
STOP_SECONDS = 5.0
# Of all connections; the others are for probes and pages while many orders are posted.
SHARE_OF_ORDERS = 0.9


@dataclass(frozen=True, slots=True)
class ConsumerPages:
    """What the server shows of one consumer.

    Attributes:
        health: What ``/health`` shows.
        stats: What ``/stats`` and the console show; None: there are no such pages.
        orders: Knows what became of orders; None: the table is switched off.
        probe_now: See ``ProbePage``; None: there is no such page.
    """

    health: Health
    stats: Stats | None = None
    orders: OrderLookup | None = None
    probe_now: Callable[[], bool] | None = None


class WebServer:
    """Serves metrics, health, figures and the console, orders, and the two pages to post to."""

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        consumers: Mapping[str, ConsumerPages],
        *,
        publisher: Publisher | None = None,
        token: str | None = None,
        names: Collection[str] = (),
        limits: Limits | None = None,
        on_rejected: Callable[[str], None] = lambda _: None,
        connections: ConnectionLimits | None = None,
        on_closed: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Prepare the server; ``start`` binds the port.

        Args:
            host: The address to serve on.
            port: The port.
            registry: What ``/metrics`` shows.
            consumers: The consumers by their names. ``?consumer=<name>`` chooses one; pages about
                one show the first without it, health shows all.
            publisher: Takes paid orders; None: there is no such page. Open as long as the server
                serves, or closed before its ``stop``; its database must outlive the server.
            token: Whoever posts must bring it; None: loopback only.
            names: Names under which pages may be read, beside addresses and the like; see
                ``Access``.
            limits: Of paid orders under way.
            on_rejected: See ``OrderPaidPage``.
            connections: Limits of all connections.
            on_closed: See ``Connections``.
        """
        self.host = host
        self._port = port
        self._registry = registry
        self._consumers = consumers
        self._access = access = Access(token, names)
        self._connections = Connections(connections or ConnectionLimits(), on_closed=on_closed)
        most_orders = max(int(SHARE_OF_ORDERS * self._connections.limits.connections), 1)
        limits = limits or Limits()
        limits = replace(limits, requests=min(limits.requests, most_orders))
        self._order_paid = (
            OrderPaidPage(publisher, access, limits=limits, on_rejected=on_rejected)
            if publisher
            else None
        )
        self._probe = ProbePage(lambda request: self._chosen(request).probe_now, access)
        self._orders = OrdersPage(lambda request: self._chosen(request).orders)
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None

    async def start(self) -> None:
        """Serve.

        Raises:
            OSError: The port cannot be bound.
        """
        app = web.Application(middlewares=[self._connections.middleware, self._check_name])
        app.on_response_prepare.append(_add_headers)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/health/live", self._live)
        app.router.add_get("/health/ready", self._ready)
        self._orders.add_to(app.router)
        if any(one.stats for one in self._consumers.values()):
            app.router.add_get("/stats", self._stats)
            add_console(app.router)
        if self._order_paid is not None:
            self._order_paid.add_to(app.router)
        if any(one.probe_now for one in self._consumers.values()):
            self._probe.add_to(app.router)
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
            auto_decompress=False,  # bodies are taken as they are, or not at all
        )
        self._listener = await loop.create_server(connect, self.host, self._port)
        self._connections.start()

    @property
    def port(self) -> int:
        """The port that is served on; where 0 was given, the one that was free."""
        if self._listener is None or not self._listener.sockets:
            return self._port
        return int(self._listener.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop serving, once requests under way have ended, after 5 s at the latest.

        An event that is being published then ends all the same, without an answer.
        """
        self._connections.stop()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @web.middleware
    async def _check_name(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        # Probes come under any name, and see nothing; the pages to post to have rules of their own.
        open_to_all = request.method == "POST" or request.path.startswith("/health/")
        if not open_to_all and (refusal := self._access.wrong_name(request)):
            return web.json_response({"error": refusal.error}, status=refusal.status)
        return await handler(request)

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def _live(self, request: web.Request) -> web.Response:
        return self._health(request, Health.live)

    async def _ready(self, request: web.Request) -> web.Response:
        return self._health(request, Health.ready)

    def _health(self, request: web.Request, ask: Callable[[Health], Report]) -> web.Response:
        """Answer for the chosen consumer, or for all: one that fails, fails the worker."""
        if CONSUMER in request.query or len(self._consumers) == 1:
            report = ask(self._chosen(request).health)
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
        stats = self._chosen(request).stats
        figures = stats.figures() if stats is not None else {}
        return web.json_response({**figures, "consumers": list(self._consumers)})

    def _chosen(self, request: web.Request) -> ConsumerPages:
        """Return the consumer that a request names; the first without one.

        Raises:
            HTTPNotFound: There is none of that name.
        """
        name = request.query.get(CONSUMER)
        if name is None:
            return next(iter(self._consumers.values()))
        try:
            return self._consumers[name]
        except KeyError:
            known = ", ".join(self._consumers)
            text = f"consumer {name[:80]!r} is not one of this worker's: {known}"
            raise web.HTTPNotFound(
                text=json.dumps({"error": text}), content_type="application/json"
            ) from None


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    # Ids and states of orders, and what a logger said: not to be kept, nor taken for a page.
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Cache-Control", "no-store")


def _connection_logger() -> logging.Logger:
    """Return what aiohttp logs to: not that a client breaks the rules of HTTP, which gets a 400."""
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
