"""The client of the external logger over TLS, with certificates made for the test."""

import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme

from app.delivery.answer import Answer
from app.delivery.logger_client import HttpLogger
from app.delivery.retry import Verdict
from tests.support.kafka.ports import LOOPBACK
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


async def _post(url: str, ca_file: Path | None) -> Answer:
    http = HttpLogger(
        url, timeout_seconds=5, connect_timeout_seconds=5, max_connections=1, ca_file=ca_file
    )
    await http.start()
    try:
        return await http.post(b"{}", "key")
    finally:
        await http.stop()


async def test_a_private_authority_is_trusted_when_named(
    tls_sink: ScriptedSink, authority: trustme.CA, tmp_path: Path
) -> None:
    """With EXTERNAL_LOGGER_CA_FILE the certificate of a private authority is accepted."""
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    assert (await _post(tls_sink.url, ca_file)).verdict is Verdict.SUCCESS
    assert tls_sink.requests[0].body == b"{}"


async def test_an_unknown_authority_is_refused(tls_sink: ScriptedSink, tmp_path: Path) -> None:
    """Neither the system's authorities nor a wrong one of ours let a strange certificate pass."""
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    for ca_file in (None, other):
        answer = await _post(tls_sink.url, ca_file)
        assert (answer.verdict, answer.status) == (Verdict.OUTAGE, None)
        assert "certificate" in answer.detail.lower()
    assert not tls_sink.requests


async def test_the_host_name_is_checked(
    tls_sink: ScriptedSink, authority: trustme.CA, tmp_path: Path
) -> None:
    """A certificate for another name of the same host is refused."""
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    answer = await _post(f"https://localhost:{tls_sink.port}/logs", ca_file)
    assert (answer.verdict, answer.status) == (Verdict.OUTAGE, None)
    assert not tls_sink.requests
