"""A target whose name moves to another address, as behind a balancer."""

import asyncio
import socket
from typing import Any

import pytest
from yarl import URL

from order_relay.handlers.http_client import addresses
from order_relay.handlers.http_client import client as http_client
from tests.integration.http_client import patient_client, post
from tests.support.kafka.ports import LOOPBACK
from tests.support.raw_server import RawServer, replies

OK = b"HTTP/1.1 204 No Content\r\n\r\n"


class Names:
    """A name server: the addresses of ``logger.test``, and how often it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *ports: int) -> None:
        self.ports = list(ports)
        self.asked = 0
        self.fails = False
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", self._find)

    async def _find(self, host: str, port: int, **kwargs: Any) -> list[Any]:
        self.asked += 1
        await asyncio.sleep(0)
        if self.fails:
            raise socket.gaierror(socket.EAI_AGAIN, "no name server")
        kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(*kind, (LOOPBACK, one)) for one in self.ports]


def port_of(server: RawServer) -> int:
    """Where it listens."""
    return URL(server.url).port or 0


async def test_a_name_that_moves_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under steady traffic a connection ends with its longest life, and the name is asked again."""
    monkeypatch.setattr(http_client, "LIFE_SECONDS", (0.05, 0.05))
    monkeypatch.setattr(addresses, "KNOWN_SECONDS", 0.05)
    async with RawServer(replies(OK)) as before, RawServer(replies(OK)) as after:
        names = Names(monkeypatch, port_of(before))
        async with patient_client("http://logger.test/logs") as http:
            await post(http)
            names.ports = [port_of(after)]
            while not after.requests:
                await post(http)
    # Within a minute, with what is not shortened here.
    monkeypatch.undo()
    assert http_client.LIFE_SECONDS[1] + addresses.KNOWN_SECONDS < 60


async def test_connections_go_to_all_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many connections at once ask for the name once, and are spread over what it is."""
    async with RawServer(replies(OK)) as first, RawServer(replies(OK)) as second:
        names = Names(monkeypatch, port_of(first), port_of(second))
        async with patient_client("http://logger.test/logs") as http:
            await asyncio.gather(*(post(http, f"key-{number}") for number in range(10)))
        assert names.asked == 1
        assert (len(first.requests), len(second.requests)) == (5, 5)


async def test_what_is_known_serves_while_no_name_server_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name server that is away for a while costs nothing once the name was known."""
    monkeypatch.setattr(http_client, "LIFE_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(addresses, "KNOWN_SECONDS", 0.0)
    async with RawServer(replies(OK)) as server:
        names = Names(monkeypatch, port_of(server))
        async with patient_client("http://logger.test/logs") as http:
            await post(http)
            names.fails = True
            for _ in range(3):
                await post(http)
        assert len(server.requests) == 4
        assert names.asked == 4
