"""``POST /probe`` over real HTTP: which clients may probe, and the answers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from order_relay.delivery.breaker import Breaker
from tests.support.http_request import ask
from tests.support.publish_ways import serving
from tests.support.standing_health import StandingDeliveries, consumer_pages, standing_health

TOKEN = "s3cret"


@asynccontextmanager
async def probed(token: str | None = None) -> AsyncIterator[tuple[Breaker, str]]:
    """A breaker whose next probe is ten minutes away, and the address of its page."""
    breaker = Breaker(1, 600.0, lambda: 100.0)
    breaker.failed(0, first=True)
    breaker.failed(breaker.begin_probe(never_sent=False), first=False)
    assert waits(breaker)
    health = standing_health(StandingDeliveries(breaker))

    def probe_now() -> str:
        """Like the dispatcher of a consumer that is not paused."""
        return "" if breaker.probe_now() else "nothing to probe: the breaker is closed"

    pages = consumer_pages(health, probe_now=probe_now)
    async with serving(None, token=token, pages=pages) as url:
        yield breaker, f"{url}/probe"


def waits(breaker: Breaker) -> bool:
    """Whether the next probe must wait."""
    return breaker.probe_wait(never_sent=False) > 0


async def test_a_probe_is_let_go_while_the_breaker_is_open() -> None:
    """202, and the next probe goes at once."""
    async with probed() as (breaker, page):
        answer = await ask(page, "POST")
        assert (answer.status, answer.json) == (202, {"probing": True})
        assert not waits(breaker)


async def test_with_a_token_a_probe_needs_it() -> None:
    """401 without the token; the answer has no token."""
    async with probed(TOKEN) as (breaker, page):
        for headers in ({}, {"Authorization": "Bearer s3cre"}):
            answer = await ask(page, "POST", headers=headers)
            assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert TOKEN not in answer.text
        assert waits(breaker)
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert (await ask(page, "POST", headers=right)).status == 202
        assert not waits(breaker)


async def test_without_a_token_only_this_machine_may_probe() -> None:
    """403 for a request from another site's page; the worker's own console may probe."""
    async with probed() as (breaker, page):
        answer = await ask(page, "POST", headers={"Origin": "http://evil.example"})
        assert answer.status == 403
        assert "API_TOKEN" in answer.text
        assert waits(breaker)
        own = {"Origin": page.removesuffix("/probe")}
        assert (await ask(page, "POST", headers=own)).status == 202


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD"])
async def test_other_methods_change_nothing(method: str) -> None:
    """They get 405."""
    async with probed() as (breaker, page):
        answer = await ask(page, method)
        assert (answer.status, answer.headers["Allow"]) == (405, "POST")
        assert waits(breaker)
