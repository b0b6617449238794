"""Certificate files that are renewed while the client of the target uses them."""

import logging
import ssl
from pathlib import Path

import pytest
import trustme

from order_relay.delivery.answer import Verdict
from order_relay.handlers.http_client import certificates
from order_relay.handlers.http_client.certificates import LOOK_SECONDS, CertificateFiles
from tests.integration.http_client import client, post
from tests.support.kafka.ports import LOOPBACK
from tests.support.sink import ScriptedSink

REFUSED, READ = "Renewed certificate files cannot be used", "Certificate files read again"


def _replace(file: Path, content: bytes) -> None:
    """As Kubernetes and cert-manager do: another file takes the path."""
    other = file.with_suffix(".new")
    other.write_bytes(content)
    other.replace(file)


def _client_certificate(authority: trustme.CA) -> trustme.LeafCert:
    return authority.issue_cert("worker.test")


@pytest.mark.parametrize("renewed", ["authorities", "certificate"])
async def test_renewed_files_are_used_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renewed: str
) -> None:
    """The next connection is made with them."""
    monkeypatch.setattr(certificates, "LOOK_SECONDS", 0.0)
    theirs, ours, old = trustme.CA(), trustme.CA(), trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    theirs.issue_cert(LOOPBACK).configure_cert(context)
    ours.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    certificate = _client_certificate(ours).private_key_and_cert_chain_pem.bytes()
    good = {"authorities": theirs.cert_pem.bytes(), "certificate": certificate}
    bad = {
        "authorities": old.cert_pem.bytes(),
        "certificate": _client_certificate(old).private_key_and_cert_chain_pem.bytes(),
    }
    files = {name: tmp_path / f"{name}.pem" for name in good}
    for name, file in files.items():
        file.write_bytes((bad if name == renewed else good)[name])
    async with (
        ScriptedSink(tls=context) as sink,
        client(sink.url, ca_file=files["authorities"], cert_file=files["certificate"]) as http,
    ):
        assert (await post(http)).verdict is not Verdict.SUCCESS
        _replace(files[renewed], good[renewed])
        assert (await post(http)).verdict is Verdict.SUCCESS


def test_files_that_cannot_be_used_leave_the_last_good_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning for each change, not for each connection; the next good ones are used."""
    caplog.set_level(logging.INFO)
    now = 0.0
    authority = trustme.CA()
    ca_file, cert_file, key_file = (tmp_path / f"{name}.pem" for name in ("ca", "cert", "key"))
    ca_file.write_bytes(authority.cert_pem.bytes())
    first, second = _client_certificate(authority), _client_certificate(authority)
    cert_file.write_bytes(first.cert_chain_pems[0].bytes())
    key_file.write_bytes(first.private_key_pem.bytes())
    files = CertificateFiles(ca_file, cert_file, key_file, clock=lambda: now)
    context = files.context()

    def look() -> list[str]:
        nonlocal now
        now += LOOK_SECONDS
        caplog.clear()
        files.context()
        return [record.getMessage() for record in caplog.records]

    assert look() == []
    renewed = second.cert_chain_pems[0].bytes()
    for content in (renewed[:100], renewed):  # half-written, and with the key of the first
        cert_file.write_bytes(content)
        (line,) = look()
        assert line.startswith(REFUSED)
        assert str(cert_file) in line
        assert look() == []
        assert files.context() is context
    cert_file.unlink()
    (line,) = look()
    assert "No such file" in line
    cert_file.write_bytes(renewed)
    look()
    key_file.write_bytes(second.private_key_pem.bytes())
    assert files.context() is context  # less than a second after the last look
    (line,) = look()
    assert line.startswith(READ)
    assert files.context() is not context
    assert look() == []
