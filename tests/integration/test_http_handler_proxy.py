"""The client of the target through an HTTP proxy."""

import ssl
from pathlib import Path

import pytest
import trustme
from yarl import URL

from order_relay.delivery.answer import Verdict
from order_relay.monitoring.metrics import ATTEMPT_RESULTS
from tests.integration.http_client import BODY, client
from tests.support.kafka.ports import LOOPBACK
from tests.support.raw_server import Peer, RawServer
from tests.support.sink import ScriptedSink

CREDENTIALS = "Proxy-Authorization: Basic dXM6czNjcmV0"  # us:s3cret


CONNECTED = b"HTTP/1.1 200 Connection established\r\nVia: 1.1 proxy\r\n\r\n"


def proxy(refusal: bytes = b"", connected: bytes = CONNECTED) -> RawServer:
    """A proxy that connects, or sends the test's refusal."""

    async def script(peer: Peer) -> None:
        head = (await peer.head()).head
        if refusal:
            await peer.send(refusal)
            return
        method, target, _ = head.decode().split(" ", 2)
        port = (URL(target).port if method != "CONNECT" else int(target.rpartition(":")[2])) or 0
        if method == "CONNECT":
            await peer.send(connected)
        await peer.pass_on(port, b"" if method == "CONNECT" else head)

    return RawServer(script)


def through(server: RawServer) -> str:
    """The setting of a proxy, with a user and a password."""
    return f"http://us:s3cret@{LOOPBACK}:{server.port}"


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
    async with ScriptedSink(tls=context) as sink, proxy(connected=connected) as server:
        url = f"https://logger.localhost:{sink.port}/logs"
        async with client(url, proxy=through(server), ca_file=ca_file, token="our-token") as http:
            assert (await http.post(BODY, "key")).verdict is Verdict.SUCCESS
            assert (await http.post(BODY, "key")).verdict is Verdict.SUCCESS
        (request,) = server.requests
        head = request.head.decode()
        assert head.startswith(f"CONNECT logger.localhost:{sink.port} HTTP/1.1\r\n")
        assert CREDENTIALS in head
        assert "our-token" not in head
        assert sink.accepted_bodies == [BODY, BODY]
        assert "proxy-authorization" not in sink.requests[0].headers


async def test_without_tls_the_proxy_is_asked_for_the_whole_url(sink: ScriptedSink) -> None:
    """The request's target is the URL without its fragment (RFC 9112, 3.2.2)."""
    async with (
        proxy() as server,
        client(f"{sink.url}?a=b#c", proxy=through(server)) as http,
    ):
        assert (await http.post(BODY, "key")).verdict is Verdict.SUCCESS
    (request,) = server.requests
    head = request.head.decode()
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
        proxy(refusal) as server,
        client("https://logger.test/logs", proxy=through(server)) as http,
    ):
        answer = await http.post(BODY, "key")
    assert (answer.verdict, answer.failure) == (verdict, "connect")
    assert answer.status_class in ATTEMPT_RESULTS[verdict]
    assert said in answer.detail
    assert f"logger.test:443 through proxy {LOOPBACK}:{server.port}" in answer.detail
    assert "s3cret" not in repr(answer)
