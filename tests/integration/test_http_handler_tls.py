"""The client of the target over TLS, with certificates made for the test."""

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from order_relay.delivery.answer import Answer, Verdict
from order_relay.handlers.http_client.client import ConnectionNotMade
from tests.integration.http_client import BODY, client, patient_client, post
from tests.support.kafka.ports import LOOPBACK
from tests.support.raw_server import Peer, RawServer
from tests.support.sink import ScriptedSink


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A private certificate authority."""
    return trustme.CA()


@pytest.fixture
async def tls_sink(authority: trustme.CA) -> AsyncIterator[ScriptedSink]:
    """A sink whose certificate that authority has signed."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(LOOPBACK).configure_cert(context)
    async with ScriptedSink(tls=context) as scripted:
        yield scripted


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> Path:
    """The file of that authority."""
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


async def _post(url: str, ca_file: Path | None) -> Answer:
    async with client(url, ca_file=ca_file) as http:
        return await http.post(BODY, "key")


async def test_a_handshake_while_the_process_stood_still(
    tls_sink: ScriptedSink, ca_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A standstill of minutes leaves the handshake its time."""
    loop = asyncio.get_running_loop()
    now, began, may_answer = loop.time, asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        hello = await peer.some()
        began.set()
        await may_answer.wait()
        await peer.pass_on(tls_sink.port, hello)

    async with RawServer(script) as server:
        url = server.url.replace("http:", "https:")
        async with client(url, ca_file=ca_file) as http:
            posting = asyncio.create_task(http.post(BODY, "key"))
            await began.wait()
            monkeypatch.setattr(loop, "time", lambda: now() + 100)
            may_answer.set()
            answer = await posting
            assert (answer.verdict, answer.detail) == (Verdict.SUCCESS, "")


async def test_a_certificate_that_does_not_match_is_refused(
    tls_sink: ScriptedSink, ca_file: Path, tmp_path: Path
) -> None:
    """Without the right authority, and for another name of the same host."""
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    localhost = tls_sink.url.replace(LOOPBACK, "localhost")
    for url, known in ((tls_sink.url, None), (tls_sink.url, other), (localhost, ca_file)):
        answer = await _post(url, known)
        assert (answer.verdict, answer.status, answer.failure) == (Verdict.OUTAGE, None, "tls")
        assert "certificate" in answer.detail.lower()
    assert not tls_sink.requests


@pytest.mark.parametrize(
    ("host", "certified"),
    [
        ("straße.test", "xn--strae-oqa.test"),
        ("xn--strae-oqa.test", "xn--strae-oqa.test"),
        ("logger.test.", "logger.test"),
    ],
    ids=["letters", "ASCII", "dot"],
)
async def test_a_name_with_other_letters_or_a_dot_at_its_end(
    authority: trustme.CA, ca_file: Path, monkeypatch: pytest.MonkeyPatch, host: str, certified: str
) -> None:
    """Names are resolved by IDNA 2008, and certificates match without the final dot."""

    async def find(name: str, port: int, **more: Any) -> list[Any]:
        asked.append(name)
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (LOOPBACK, port))]

    asked: list[str] = []
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", find)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(certified).configure_cert(context)
    async with ScriptedSink(tls=context) as server:
        answer = await _post(f"https://{host}:{server.port}/logs", ca_file)
    assert (answer.verdict, answer.detail) == (Verdict.SUCCESS, "")
    assert [name.rstrip(".") for name in asked] == [certified]


def _nginx_page(title: str) -> bytes:
    """The page of nginx's special_response.c."""
    return (
        f"<html>\r\n<head><title>400 {title}</title></head>\r\n<body>\r\n"
        f"<center><h1>400 Bad Request</h1></center>\r\n<center>{title}</center>\r\n"
        "<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
    ).encode()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, _nginx_page("The SSL certificate error")),
        (400, _nginx_page("No required SSL certificate was sent")),
        (495, b"expired"),
        (496, b"none"),
    ],
    ids=["wrong", "missing", "495", "496"],
)
async def test_nginx_refuses_our_certificate_after_the_handshake(
    tls_sink: ScriptedSink, sink: ScriptedSink, ca_file: Path, status: int, body: bytes
) -> None:
    """It is an outage. Without TLS, or quoted in another body, the answer is about the order."""
    async with client(tls_sink.url, ca_file=ca_file) as http:
        tls_sink.fail_next(1, status, body=body)
        answer = await http.post(BODY, "key")
        assert (answer.verdict, answer.status) == (Verdict.OUTAGE, status)
        assert answer.detail == body.decode().strip()
        tls_sink.fail_next(1, 400, body=b"not valid: " + body)
        assert (await http.post(BODY, "key")).verdict is Verdict.REJECTED
    async with client(sink.url) as http:
        sink.fail_next(1, status, body=body)
        assert (await http.post(BODY, "key")).verdict is Verdict.REJECTED


@pytest.mark.parametrize(
    "body",
    [
        _nginx_page("The plain HTTP request was sent to HTTPS port"),
        b"Client sent an HTTP request to an HTTPS server.\n",
    ],
    ids=["nginx", "Go"],
)
async def test_a_url_without_tls_for_a_port_with_it(
    tls_sink: ScriptedSink, sink: ScriptedSink, ca_file: Path, body: bytes
) -> None:
    """The setting is wrong: an outage. With TLS, or quoted, the answer is about the order."""
    async with client(sink.url) as http:
        sink.fail_next(1, 400, body=body)
        assert (await http.post(BODY, "key")).verdict is Verdict.OUTAGE
        sink.fail_next(1, 400, body=b"not valid: " + body)
        assert (await http.post(BODY, "key")).verdict is Verdict.REJECTED
    async with client(tls_sink.url, ca_file=ca_file) as http:
        tls_sink.fail_next(1, 400, body=body)
        assert (await http.post(BODY, "key")).verdict is Verdict.REJECTED


def _serve_with_certificates(listener: socket.socket, context: ssl.SSLContext) -> None:
    """Answer clients with the right certificate; others get a TLS alert."""
    while True:
        try:
            plain, _ = listener.accept()
        except OSError:
            return
        with context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False) as secured:
            try:
                secured.do_handshake()
            except ssl.SSLError:
                # Else a reset of the connection would drop the alert.
                socket.socket.recv(secured, 65536)
            else:
                with contextlib.suppress(OSError):  # the client only connects
                    secured.recv(65536)
                    secured.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")


@pytest.mark.parametrize(
    ("version", "without"),
    [(ssl.TLSVersion.TLSv1_2, Verdict.RETRYABLE), (ssl.TLSVersion.TLSv1_3, Verdict.OUTAGE)],
    ids=["TLS 1.2", "TLS 1.3"],
)
async def test_our_certificate_is_shown_to_a_logger_that_asks(
    tmp_path: Path, version: ssl.TLSVersion, without: Verdict
) -> None:
    """Without the right one the target refuses us: a post, and a connection without a request."""
    authority, ours = trustme.CA(), trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(LOOPBACK).configure_cert(context)
    ours.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = context.maximum_version = version
    files = {name: tmp_path / f"{name}.pem" for name in ("authority", "ours", "others")}
    authority.cert_pem.write_to_path(str(files["authority"]))
    for name, signer in (("ours", ours), ("others", trustme.CA())):
        certificate = signer.issue_cert("worker.test")
        certificate.private_key_and_cert_chain_pem.write_to_path(str(files[name]))
    with socket.create_server((LOOPBACK, 0)) as listener:
        serving = threading.Thread(target=_serve_with_certificates, args=(listener, context))
        serving.start()
        try:
            for file, verdict in (
                (files["ours"], Verdict.SUCCESS),
                (None, without),
                (files["others"], Verdict.OUTAGE),
            ):
                async with client(
                    f"https://{LOOPBACK}:{listener.getsockname()[1]}/logs",
                    ca_file=files["authority"],
                    cert_file=file,
                ) as http:
                    answer = await http.post(BODY, "key")
                    assert (answer.verdict, file) == (verdict, file), answer
                    assert (answer.failure == "tls") == (file != files["ours"])
                    named = "EXTERNAL_LOGGER_CERT_FILE" in answer.detail
                    assert named == (verdict is Verdict.OUTAGE), answer
                    if verdict is Verdict.SUCCESS:
                        await http.connect()
                        continue
                    with pytest.raises(ConnectionNotMade, match="no connection to") as refusal:
                        await http.connect()
                    assert ("EXTERNAL_LOGGER_CERT_FILE" in str(refusal.value)) == named
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            serving.join(30)


async def test_a_connection_over_tls_is_kept(tls_sink: ScriptedSink, ca_file: Path) -> None:
    """Posts in a row share one connection and handshake; large bodies arrive whole."""
    body = b'{"pad":"' + b"0123456789" * 100_000 + b'"}'
    async with patient_client(tls_sink.url, ca_file=ca_file) as http:
        for number in range(5):
            assert (await post(http, f"key-{number}", body)).verdict is Verdict.SUCCESS
    assert tls_sink.accepted_bodies == [body] * 5
    assert tls_sink.connections == 1


async def test_a_port_without_tls() -> None:
    """A server that answers a TLS handshake in plain text is a failed attempt."""

    async def script(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await peer.end()

    async with (
        RawServer(script) as server,
        patient_client(server.url.replace("http:", "https:")) as http,
    ):
        answer = await post(http)
    assert (answer.verdict, answer.status, answer.failure) == (Verdict.RETRYABLE, None, "tls")
    assert not server.requests


async def test_connecting_notices_a_server_that_closes_after_the_handshake(
    authority: trustme.CA, ca_file: Path
) -> None:
    """Some refuse a client without a certificate by closing, without an alert."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(LOOPBACK).configure_cert(context)
    server = await asyncio.start_server(lambda _, writer: writer.close(), LOOPBACK, ssl=context)
    async with server:
        url = f"https://{LOOPBACK}:{server.sockets[0].getsockname()[1]}/logs"
        async with client(url, ca_file=ca_file) as http:
            with pytest.raises(ConnectionNotMade, match="closed after the TLS handshake"):
                await http.connect()


async def test_a_handshake_that_is_broken_off() -> None:
    """The error names the TLS handshake; the library's error has no text."""

    async def script(peer: Peer) -> None:
        await peer.some()

    async with (
        RawServer(script) as server,
        patient_client(server.url.replace("http:", "https:")) as http,
    ):
        answer = await post(http)
    assert (answer.verdict, answer.failure) == (Verdict.RETRYABLE, "connect")
    assert answer.detail.endswith(f":{server.port}: closed during the TLS handshake")
