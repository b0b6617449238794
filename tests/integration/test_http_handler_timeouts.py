"""The time limits of an attempt."""

import asyncio
from typing import Any

import pytest

from order_relay.delivery.answer import Answer, Verdict
from tests.integration.http_client import BODY, client, post, talking
from tests.support.raw_server import OK, Peer, RawServer, replies, unanswered
from tests.support.waiting import eventually

ENDLESS = 1_000_000


def is_late(answer: Answer, failure: str, limit: str) -> None:
    """Assert that the attempt timed out, and that the error names the limit."""
    assert (answer.verdict, answer.status) == (Verdict.RETRYABLE, None)
    assert answer.failure == failure
    assert limit in answer.detail
    assert "Timeout" in (answer.error_type or "")


@pytest.mark.parametrize("limits", [(60, 0.2), (0.2, 60)], ids=["its own", "the attempt's"])
async def test_connecting_has_a_limit_of_its_own_and_the_attempts(
    limits: tuple[float, float],
) -> None:
    """An attempt to a host that does not accept ends after the shorter of both time-outs."""
    timeout, connect = limits
    with unanswered() as port:
        async with client(
            f"http://127.0.0.1:{port}", timeout_seconds=timeout, connect_timeout_seconds=connect
        ) as http:
            is_late(await post(http), "connect", "0.2 s")


async def test_a_handshake_is_part_of_connecting() -> None:
    """A host that never answers the TLS handshake counts as one that does not accept."""
    async with RawServer(lambda peer: peer.end()) as server:
        async with client(
            server.url.replace("http:", "https:"), timeout_seconds=60, connect_timeout_seconds=0.2
        ) as http:
            is_late(await post(http), "connect", "0.2 s")
        await server.ended(0)


async def test_silence_before_the_status_is_whole() -> None:
    """An answer that stops in its status line times out; its connection is closed."""
    begun = [b"", b"H", b"HTTP/1.1 20", b"HTTP/1.1 200", b"HTTP/1.1 200 OK", b"HTTP/1.1 100 A\r\n"]

    async def script(peer: Peer) -> None:
        request = await peer.request()
        await peer.send(begun[int(request.key)])
        await peer.end()

    async with talking(script, timeout_seconds=1) as (server, http):
        for answer in await asyncio.gather(*(post(http, str(n)) for n in range(len(begun)))):
            is_late(answer, "timeout", "1 s")
        for number in range(len(begun)):
            await server.ended(number)
    assert len(server.peers) == len(begun)


@pytest.mark.parametrize(
    "start", [b"HTTP/1.1 200 ", b"HTTP/1.1 100 A\r\nX-Name: "], ids=["status line", "100"]
)
async def test_a_drip_is_no_answer(start: bytes) -> None:
    """Single bytes before the end of the status line do not extend the attempt."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(start)
        await peer.flood(b"x", ENDLESS, pause_seconds=0.02)

    async with talking(script, timeout_seconds=1) as (server, http):
        is_late(await post(http), "timeout", "1 s")
        await server.ended(0)


async def test_a_connection_that_was_silent_once_is_not_used_again() -> None:
    """A silent used connection times out like a new one, and nothing is resent."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        await peer.end()

    async with talking(script, replies(OK), timeout_seconds=2) as (server, http):
        assert (await post(http)).verdict is Verdict.SUCCESS
        is_late(await post(http), "timeout", "2 s")
        assert server.connections == [0, 0]
        assert (await post(http)).verdict is Verdict.SUCCESS
    assert server.connections == [0, 0, 1]


async def test_sending_again_is_part_of_the_attempt() -> None:
    """A resent request has one time limit for both sends."""

    async def ends(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()

    async def silent(peer: Peer) -> None:
        await peer.request()
        await peer.end()

    async with talking(ends, silent, timeout_seconds=2) as (server, http):
        assert (await post(http)).verdict is Verdict.SUCCESS
        is_late(await post(http), "timeout", "2 s")
        await server.ended(1)
    assert server.connections == [0, 0, 1]


async def test_waiting_for_a_connection_is_part_of_the_attempt() -> None:
    """A post that waits for a free connection has the same time-out."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.end()

    async with talking(script, timeout_seconds=1, max_connections=1) as (_, http):
        for answer in await asyncio.gather(*(post(http, f"key-{n}") for n in range(3))):
            is_late(answer, "timeout", "1 s")


async def test_an_answer_that_came_while_the_process_stood_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a freeze longer than the time-out, an answer that has arrived still counts."""
    may_answer = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await may_answer.wait()
        await peer.send(OK)

    async with RawServer(script) as server, client(server.url, timeout_seconds=5) as http:
        posting = asyncio.create_task(post(http))
        await eventually(lambda: server.requests, 20, "the request")
        loop = asyncio.get_running_loop()
        now = loop.time
        monkeypatch.setattr(loop, "time", lambda: now() + 10)
        may_answer.set()
        assert (await posting).verdict is Verdict.SUCCESS


async def test_connecting_while_the_process_stood_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """A standstill counts neither for the time to connect nor for that of the attempt."""
    loop = asyncio.get_running_loop()
    now, find = loop.time, loop.getaddrinfo
    asked, may_answer = asyncio.Event(), asyncio.Event()

    async def slow_find(*args: Any, **more: Any) -> Any:
        asked.set()
        await may_answer.wait()
        return await find(*args, **more)

    async def script(peer: Peer) -> None:
        await peer.request()
        await asyncio.sleep(0.5)  # longer than the interval at which time limits are checked
        await peer.send(OK)

    monkeypatch.setattr(loop, "getaddrinfo", slow_find)
    async with RawServer(script) as server, client(server.url, timeout_seconds=5) as http:
        posting = asyncio.create_task(http.post(BODY, "key"))
        await asked.wait()
        monkeypatch.setattr(loop, "time", lambda: now() + 100)
        may_answer.set()
        answer = await posting
        assert (answer.verdict, answer.detail) == (Verdict.SUCCESS, "")


@pytest.mark.parametrize("failure", ["connect", "timeout"])
async def test_a_loop_that_is_always_late_times_out_too(
    monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    """Standstills without an end do not extend an attempt for ever."""
    loop = asyncio.get_running_loop()
    now, began = loop.time, loop.time()
    monkeypatch.setattr(loop, "time", lambda: began + 60 * (now() - began))
    with unanswered() as port:
        async with RawServer(lambda peer: peer.end()) as server:
            url = server.url if failure == "timeout" else f"http://127.0.0.1:{port}"
            async with client(url, timeout_seconds=1) as http:
                is_late(await http.post(BODY, "key"), failure, "1 s")
