"""The client of the target through an HTTP proxy."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from order_relay.delivery.answer import Verdict
from order_relay.monitoring.metrics import ATTEMPT_RESULTS
from tests.integration.http_client import BODY, client
from tests.support.kafka.ports import LOOPBACK
from tests.support.sink import ScriptedSink

CREDENTIALS = "Proxy-Authorization: Basic dXM6czNjcmV0"  # us:s3cret


CONNECTED = b"HTTP/1.1 200 Connection established\r\nVia: 1.1 proxy\r\n\r\n"


class ConnectingProxy:
    """A proxy that connects, or sends the test's refusal."""

    def __init__(self, refusal: bytes = b"", connected: bytes = CONNECTED) -> None:
        self.heads: list[str] = []
        self._refusal = refusal
        self._connected = connected
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Listen; yields its address."""
        server = await asyncio.start_server(self._serve, LOOPBACK, 0)
        try:
            yield f"{LOOPBACK}:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for writer in self._writers:
                writer.close()
            await asyncio.gather(
                *self._tasks,
                *(writer.wait_closed() for writer in self._writers),
                return_exceptions=True,
            )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        method, target, _ = head.split(" ", 2)
        if self._refusal:
            writer.write(self._refusal)
            writer.close()
            return
        place = target if method == "CONNECT" else target.split("/")[2]
        there = await asyncio.open_connection(LOOPBACK, int(place.rpartition(":")[2]))
        self._writers.append(there[1])
        if method == "CONNECT":
            writer.write(self._connected)
        else:
            there[1].write(head.encode())
        for source, sink in ((reader, there[1]), (there[0], writer)):
            task = asyncio.create_task(_copy(source, sink))
            self._tasks.add(task)


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65536):
            sink.write(data)
    sink.close()


@pytest.mark.parametrize(
    "connected",
    [CONNECTED, CONNECTED.replace(b"\r", b""), b"HTTP/1.1 102 Processing\r\n\r\n" + CONNECTED],
    ids=["CRLF", "LF", "after 102"],
)
async def test_tls_goes_through_a_tunnel_to_the_logger_itself(
    tmp_path: Path, connected: bytes
) -> None:
    """The proxy gets host, port and its own credentials; it sees neither token nor event."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("logger.localhost").configure_cert(context)
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    proxy = ConnectingProxy(connected=connected)
    async with ScriptedSink(tls=context) as sink, proxy.running() as address:
        url = f"https://logger.localhost:{sink.port}/logs"
        async with client(
            url, proxy=f"http://us:s3cret@{address}", ca_file=ca_file, token="our-token"
        ) as http:
            assert (await http.post(BODY, "key")).verdict is Verdict.SUCCESS
            assert (await http.post(BODY, "key")).verdict is Verdict.SUCCESS
        (head,) = proxy.heads
        assert head.startswith(f"CONNECT logger.localhost:{sink.port} HTTP/1.1\r\n")
        assert CREDENTIALS in head
        assert "our-token" not in head
        assert [request.body for request in sink.requests] == [BODY, BODY]
        assert "proxy-authorization" not in sink.requests[0].headers


async def test_without_tls_the_proxy_is_asked_for_the_whole_url(sink: ScriptedSink) -> None:
    """The request's target is the URL without its fragment (RFC 9112, 3.2.2)."""
    proxy = ConnectingProxy()
    async with (
        proxy.running() as address,
        client(f"{sink.url}?a=b#c", proxy=f"http://us:s3cret@{address}") as http,
    ):
        assert (await http.post(BODY, "key")).verdict is Verdict.SUCCESS
    (head,) = proxy.heads
    assert head.startswith(f"POST {sink.url}?a=b HTTP/1.1\r\n")
    assert CREDENTIALS in head


@pytest.mark.parametrize(
    ("refusal", "said", "verdict"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "407 Proxy", Verdict.OUTAGE),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "403 Forbidden", Verdict.OUTAGE),
        (b"HTTP/1.1 102 Processing\n\nHTTP/1.1 403 No\n\n", "403 No", Verdict.OUTAGE),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "502 Bad Gateway", Verdict.RETRYABLE),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "SSH-2.0", Verdict.RETRYABLE),
        (b"HTTP/1.1 200", "no answer to CONNECT", Verdict.RETRYABLE),
    ],
    ids=["407", "403", "102", "502", "no proxy", "half"],
)
async def test_a_proxy_that_does_not_connect_is_a_failed_connection(
    refusal: bytes, said: str, verdict: Verdict
) -> None:
    """The error has the proxy's answer without the password; no order is given up for it."""
    async with (
        ConnectingProxy(refusal).running() as address,
        client("https://logger.test/logs", proxy=f"http://us:s3cret@{address}") as http,
    ):
        answer = await http.post(BODY, "key")
    assert (answer.verdict, answer.failure) == (verdict, "connect")
    assert answer.status_class in ATTEMPT_RESULTS[verdict]
    assert said in answer.detail
    assert f"logger.test:443 through proxy {address}" in answer.detail
    assert "s3cret" not in repr(answer)
