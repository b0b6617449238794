"""``POST /probe``: while the breaker is open the next probe goes at once."""

from __future__ import annotations

import logging
from collections.abc import Callable

from aiohttp import web

from order_relay.web.access import Access

logger = logging.getLogger(__name__)

PATH = "/probe"


class ProbePage:
    """Lets a probe go, for who has the token; a body is not read."""

    def __init__(
        self, probe_now: Callable[[web.Request], Callable[[], bool] | None], access: Access
    ) -> None:
        """Ask what ``probe_now`` gives, which returns ``False`` if there is nothing to probe."""
        self._probe_now = probe_now
        self._access = access

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Serve the page."""
        router.add_post(PATH, self._post)

    async def _post(self, request: web.Request) -> web.Response:
        if refusal := self._access.refusal(request):
            headers = {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else {}
            return web.json_response(
                {"error": refusal.error}, status=refusal.status, headers=headers
            )
        probe_now = self._probe_now(request)
        if probe_now is None or not probe_now():
            return web.json_response(
                {"error": "nothing to probe: the breaker is closed, records are sent as they come"},
                status=409,
            )
        logger.info("Probe asked for, it goes at once")
        return web.json_response({"probing": True}, status=202)
