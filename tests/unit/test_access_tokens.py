"""Access tokens: kept while valid, renewed in time, requested at intervals."""

import base64
import json
import logging
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote_plus

import pytest
import trustme

from order_relay.errors import AccessTokenUnavailable
from order_relay.kafka import access_tokens
from order_relay.kafka.access_tokens import PAUSE_SECONDS, AccessToken, AccessTokens, request_token
from order_relay.settings import Settings, load_settings
from tests.support.identity_provider import IdentityProvider

pytestmark = pytest.mark.usefixtures("empty_environment")

ID, SECRET = "relay:client", "hunter2 +/%"


class Provider:
    """A clock, and a provider that answers by it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.asked = 0
        self.away = False
        self.tokens = AccessTokens(self._fetch, clock=lambda: self.now)

    def _fetch(self) -> tuple[str, float]:
        self.asked += 1
        if self.away:
            raise AccessTokenUnavailable("url", f"away {self.asked}")
        return f"token {self.asked}", 100.0

    def at(self, now: float) -> str:
        """What is current at a time; empty if nothing is."""
        self.now = now
        try:
            return self.tokens.current().value
        except AccessTokenUnavailable:
            return ""


def test_a_token_is_used_until_it_is_to_be_renewed() -> None:
    """A token is used for three quarters of its lifetime, then a new one."""
    provider = Provider()

    assert [provider.at(now) for now in (1000, 1001, 1074.9)] == ["token 1"] * 3
    assert [provider.at(now) for now in (1075, 1149.9)] == ["token 2"] * 2
    assert provider.tokens.current() == AccessToken("token 2", 1175.0)
    assert provider.asked == 2


def test_the_last_token_is_kept_while_there_is_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """In an outage the last token is used until it expires; each change is logged once."""
    provider = Provider()
    provider.at(1000)
    provider.away = True

    assert [provider.at(now) for now in (1075, 1080, 1099.9)] == ["token 1"] * 3
    assert [provider.at(now) for now in (1100, 1105, 1110)] == [""] * 3
    provider.away = False
    assert provider.at(1120) == f"token {provider.asked}"

    assert [(line.levelno, line.getMessage().partition(":")[0]) for line in caplog.records] == [
        (logging.WARNING, "Access token not renewed, the last one is kept"),
        (logging.ERROR, "Access token expired, Kafka will refuse us"),
        (logging.WARNING, "Access token renewed again"),
    ]
    assert "token 1" not in caplog.text


def test_a_provider_that_refuses_is_asked_once_in_a_while() -> None:
    """One request per interval for all connections; all get its error."""
    provider = Provider()
    provider.away = True
    for _ in range(3):
        with pytest.raises(AccessTokenUnavailable, match="away 1"):
            provider.tokens.current()
    provider.now += PAUSE_SECONDS
    with pytest.raises(AccessTokenUnavailable, match="away 2"):
        provider.tokens.current()


def test_a_renewal_delays_no_other_thread_while_the_last_token_is_valid() -> None:
    """One thread asks the provider; the others go on with the token that there is."""
    asked, answer, lifetimes = threading.Event(), threading.Event(), [100.0, 0.0]

    def fetch() -> tuple[str, float]:
        if len(lifetimes) == 1:
            asked.set()
            assert answer.wait(30)
        return f"token {lifetimes.pop()}", 100.0

    now = [1000.0]
    tokens = AccessTokens(fetch, clock=lambda: now[0])
    first = tokens.current()
    now[0] = 1080.0
    with ThreadPoolExecutor(1) as thread:
        renewed = thread.submit(tokens.current)
        assert asked.wait(30)
        assert tokens.current() == first
        answer.set()
        assert renewed.result(30) == tokens.current() != first


def test_a_token_does_not_print() -> None:
    """A token that is logged by mistake is not shown."""
    assert "hunter2" not in repr(AccessToken("hunter2", 1.0))


@pytest.fixture
def provider() -> Iterator[IdentityProvider]:
    """A provider without TLS."""
    with IdentityProvider({ID: SECRET}, lifetime_seconds=60) as running:
        yield running


def _settings(url: str, secret: str, **more: Path) -> Settings:
    return load_settings(
        kafka_security_protocol="SASL_PLAINTEXT",
        kafka_sasl_mechanism="OAUTHBEARER",
        kafka_sasl_oauth_token_url=url,
        kafka_sasl_oauth_client_id=ID,
        kafka_sasl_oauth_client_secret=secret,
        kafka_sasl_oauth_scope="kafka read",
        **more,
    )


def _request(provider: IdentityProvider, secret: str = SECRET) -> tuple[str, float]:
    return request_token(_settings(provider.url, secret))


def _refusal(provider: IdentityProvider, secret: str = SECRET) -> str:
    with pytest.raises(AccessTokenUnavailable) as caught:
        _request(provider, secret)
    text = str(caught.value)
    assert "hunter2" not in text
    assert "\n" not in text
    assert text.startswith("no access token from KAFKA_SASL_OAUTH_TOKEN_URL=http")
    return caught.value.reason


def test_a_token_is_granted(provider: IdentityProvider) -> None:
    """Id and secret go in the header, encoded as RFC 6749 asks; the scope in the form."""
    token, lifetime = _request(provider)

    assert [token] == provider.tokens
    assert lifetime == 60
    assert provider.scopes == ["kafka read"]


@pytest.mark.parametrize("beginning", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n"])
@pytest.mark.parametrize("authority", [None, trustme.CA()], ids=["http", "https"])
def test_an_answer_that_comes_byte_by_byte(
    beginning: bytes, authority: trustme.CA | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The time-out is that of the whole answer: all clients of the worker wait for it."""
    monkeypatch.setattr(access_tokens, "TIMEOUT_SECONDS", 0.5)
    ended = threading.Event()
    scheme, options = "http", {}
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    if authority is not None:
        authority.issue_cert("127.0.0.1").configure_cert(context)
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        scheme, options = "https", {"kafka_sasl_oauth_ca_file": tmp_path / "ca.pem"}

    def drip(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        if authority is not None:
            connection = context.wrap_socket(connection, server_side=True)
        with connection, suppress(OSError):
            connection.sendall(beginning)
            while not ended.wait(0.05):
                connection.sendall(b" " if beginning else b"H")

    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as thread:
        thread.submit(drip, listening)
        url = f"{scheme}://127.0.0.1:{listening.getsockname()[1]}/token"
        settings = _settings(url, SECRET, **options)
        with pytest.raises(AccessTokenUnavailable, match=r"no whole answer within 0\.5 s"):
            request_token(settings)
        ended.set()


def test_a_wrong_secret_is_told_without_it(provider: IdentityProvider) -> None:
    """The provider's text is passed on, without the secret that it repeats."""
    reason = _refusal(provider, "hunter2")
    assert reason == "answered 401 (invalid_client: not [redacted])"


def test_what_the_provider_repeats_is_redacted(provider: IdentityProvider) -> None:
    """Also as it was sent: in URL encoding, and with the client's id in base64."""
    secret = "hunter2 +/%"
    sent = f"{quote_plus(ID)}:{quote_plus(secret)}"
    said = f"{sent}, {base64.b64encode(sent.encode()).decode()}, {secret}"
    provider.answer = 401, json.dumps({"error": said}).encode()
    reason = _refusal(provider, secret)
    assert reason == f"answered 401 ({quote_plus(ID)}:[redacted], [redacted], [redacted])"


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (500, b"<html>hunter2</html>", "answered 500"),
        (302, b"", "answered 302"),
        (400, b'{"error": "bad\\nscope"}', "answered 400 (bad scope)"),
        (400, b'["error"]', "answered 400"),
        (200, b"", "the answer has no access_token"),
        (200, b'{"access_token": 7}', "the answer has no access_token"),
        (200, b'{"access_token": "hunter2 hunter2"}', "the answer has no access_token"),
        (200, b'{"access_token": "hunter2\\u0001"}', "the answer has no access_token"),
    ],
)
def test_an_answer_without_a_token(
    provider: IdentityProvider, status: int, body: bytes, reason: str
) -> None:
    """Any other answer is reported in one line, without parts of the token."""
    provider.answer = (status, body)
    assert _refusal(provider) == reason


@pytest.mark.parametrize(
    ("expires_in", "lifetime"),
    [(b"7200", 7200.0), (b'"7200"', 7200.0), (b"null", 300.0), (b"-1", 300.0), (b'"x"', 300.0)],
)
def test_lifetimes(provider: IdentityProvider, expires_in: bytes, lifetime: float) -> None:
    """Numbers may be text; the default is five minutes."""
    provider.answer = (200, b'{"access_token": "abc", "expires_in": %s}' % expires_in)
    assert _request(provider) == ("abc", lifetime)


def test_a_provider_that_is_away(provider: IdentityProvider) -> None:
    """The system's error is reported."""
    provider.stop()
    assert _refusal(provider) == "Connection refused"


def test_an_unknown_authority_is_refused() -> None:
    """A provider whose certificate is not trusted gets no secret."""
    with IdentityProvider({ID: SECRET}, authority=trustme.CA()) as provider:
        reason = _refusal(provider)
        assert reason.startswith("certificate verify failed: ")
        assert reason.endswith("(KAFKA_SASL_OAUTH_CA_FILE)")
        assert not provider.tokens
