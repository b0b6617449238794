"""``GET /orders/<orderId>``: what became of an order, from whichever worker knows."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from order_relay.deliveries.lookup import ROUTED_HEADER, VIEW_HEADER, OrderLookup
from order_relay.model.order_paid import MAX_TEXT_ID_LENGTH, is_order_id

NOT_AN_ID = f"must be a whole number, or 1 to {MAX_TEXT_ID_LENGTH} printable characters"
STATUS = {"known": 200, "unknown": 404, "unsure": 503}


class OrdersPage:
    """Answers in JSON."""

    def __init__(self, lookup: Callable[[web.Request], OrderLookup | None]) -> None:
        """Ask what ``lookup`` gives; None: the table is switched off."""
        self._lookup = lookup

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Serve the page."""
        router.add_get("/orders/{order_id:.*}", self._get)

    async def _get(self, request: web.Request) -> web.Response:
        given = request.match_info["order_id"]
        if not is_order_id(given):
            return web.json_response({"error": f"orderId {NOT_AN_ID}"}, status=400)
        lookup = self._lookup(request)
        routed = ROUTED_HEADER in request.headers
        if lookup is None:
            # Another worker, that has a table, must not take it for "unknown".
            return web.json_response(
                {"error": "the deliveries table is switched off (DELIVERIES_STORE=off)"},
                status=503 if routed else 404,
            )
        found = await lookup.find(given, here_only=routed, view=request.headers.get(VIEW_HEADER))
        return web.json_response(found.body, status=STATUS[found.certainty])
