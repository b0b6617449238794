"""``POST /probe`` over real HTTP: which clients may probe, and the answers."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp
import pytest

from order_relay.delivery.breaker import Breaker
from order_relay.monitoring.metrics import Metrics
from order_relay.web.access import Access
from order_relay.web.server import WebServer
from tests.support.kafka.ports import LOOPBACK
from tests.support.standing_health import StandingDeliveries, consumer_pages, standing_health

TOKEN = "s3cret"


class Served:
    """A web server before a breaker with a clock of its own."""

    def __init__(self, token: str | None) -> None:
        self.breaker = Breaker(1, 600.0, lambda: 100.0)
        health = standing_health(StandingDeliveries(self.breaker))
        self.server = WebServer(
            LOOPBACK,
            0,
            Metrics().registry,
            {"order_logging": consumer_pages(health, probe_now=self.probe_now)},
            access=Access(token),
        )

    def open_breaker(self) -> None:
        """An outage, whose first probe has failed: the next one is ten minutes away."""
        self.breaker.failed(0, first=True)
        self.breaker.failed(self.breaker.begin_probe(never_sent=False), first=False)
        assert self.waits

    def probe_now(self) -> str:
        """Like the dispatcher of a consumer that is not paused."""
        return "" if self.breaker.probe_now() else "nothing to probe: the breaker is closed"

    @property
    def waits(self) -> bool:
        """Whether the next probe must wait."""
        return self.breaker.probe_wait(never_sent=False) > 0

    async def request(
        self, method: str = "POST", headers: Mapping[str, str] | None = None
    ) -> tuple[int, object, Mapping[str, str]]:
        """Status, body and headers of an answer."""
        async with (
            aiohttp.ClientSession() as session,
            session.request(
                method, f"http://{LOOPBACK}:{self.server.port}/probe", headers=headers
            ) as response,
        ):
            is_json = response.content_type == "application/json"
            body = await response.json() if is_json else await response.text()
            return response.status, body, response.headers


@asynccontextmanager
async def serving(token: str | None = None) -> AsyncIterator[Served]:
    """A web server that serves."""
    one = Served(token)
    await one.server.start()
    try:
        yield one
    finally:
        await one.server.stop()


async def test_a_probe_is_let_go_while_the_breaker_is_open() -> None:
    """202, and the next probe goes at once."""
    async with serving() as served:
        served.open_breaker()
        status, body, _ = await served.request()
        assert (status, body) == (202, {"probing": True})
        assert not served.waits


async def test_with_a_token_a_probe_needs_it() -> None:
    """401 without the token, even if the breaker is closed; the answer has no token."""
    async with serving(TOKEN) as served:
        assert (await served.request())[0] == 401
        served.open_breaker()
        status, body, answered = await served.request(headers={"Authorization": "Bearer s3cre"})
        assert (status, answered["WWW-Authenticate"]) == (401, "Bearer")
        assert TOKEN not in str(body)
        assert served.waits
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert (await served.request(headers=right))[0] == 202
        assert not served.waits


async def test_without_a_token_only_this_machine_may_probe() -> None:
    """403 for a request from another site's page; the worker's own console may probe."""
    async with serving() as served:
        served.open_breaker()
        status, body, _ = await served.request(headers={"Origin": "http://evil.example"})
        assert status == 403
        assert "API_TOKEN" in str(body)
        assert served.waits
        own = {"Origin": f"http://{LOOPBACK}:{served.server.port}"}
        assert (await served.request(headers=own))[0] == 202


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD"])
async def test_other_methods_change_nothing(method: str) -> None:
    """They get 405."""
    async with serving() as served:
        served.open_breaker()
        status, _, headers = await served.request(method)
        assert (status, headers["Allow"]) == (405, "POST")
        assert served.waits
