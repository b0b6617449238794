"""The fallback table on a PostgreSQL server that takes TLS only."""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme

from order_relay.errors import DatabaseUnavailable, InvalidDatabaseUrl
from order_relay.fallback.sql.engine import make_engine
from order_relay.fallback.sql.migrate import Revisions, migrate
from order_relay.fallback.table import FallbackTable
from order_relay.kafka.producer import KafkaProducer
from order_relay.monitoring.metrics import Metrics
from order_relay.settings import load_settings
from order_relay.worker.fallback_service import Fallback
from tests.support.child import run
from tests.support.publish_postgres import (
    CERTIFIED,
    USER,
    WITH_PASSWORD,
    PostgresServer,
    unavailable_reason,
)
from tests.support.waiting import eventually

# asyncpg sometimes leaves the socket of a refused TLS connection to the garbage collector, which
# warns when it closes it.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{left}:pytest.PytestUnraisableExceptionWarning")
    for left in (
        r"Exception ignored in. <function _SelectorTransport\.__del__",
        r"Exception ignored in. <socket\.socket",
    )
] + [pytest.mark.xdist_group("secure database")]  # they share a server

PASSWORD = "pass word:/@%+1"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """The authority of the server and of its clients."""
    return trustme.CA()


@pytest.fixture(scope="module")
def server(authority: trustme.CA) -> Iterator[PostgresServer]:
    """The server."""
    if reason := unavailable_reason():
        pytest.skip(reason)
    with PostgresServer(authority=authority) as running:
        running.execute(f"CREATE ROLE {CERTIFIED} SUPERUSER LOGIN")
        running.execute(f"CREATE ROLE {WITH_PASSWORD} SUPERUSER LOGIN PASSWORD '{PASSWORD}'")
        yield running


@pytest.fixture
def url(server: PostgresServer) -> Iterator[str]:
    """An empty database of the test's own."""
    name = server.create_database()
    yield server.url(name)
    server.drop_database(name)


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> Path:
    """The authority's file."""
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


def certificate(authority: trustme.CA, folder: Path, user: str) -> dict[str, Path]:
    """The settings of a client's certificate, which names its user."""
    issued = authority.issue_cert(common_name=user)
    cert, key = folder / "client.pem", folder / "client.key"
    cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(key))
    return {"database_ssl_cert_file": cert, "database_ssl_key_file": key}


async def tls_version(url: str) -> str | None:
    """The server's view of our TLS version."""
    engine = make_engine(url)
    try:
        async with engine.connect() as connection:
            query = "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
            row = (await connection.exec_driver_sql(query)).one()
            return None if row[0] is None else str(row[0])
    finally:
        await engine.dispose()


@pytest.mark.parametrize("mode", [None, "verify-full", "verify-ca", "require"])
async def test_a_known_authority_is_trusted(url: str, ca_file: Path, mode: str | None) -> None:
    """With the authority's file the table is migrated and used over TLS."""
    given = url if mode is None else f"{url}?sslmode={mode}"
    settings = load_settings(database_url=given, database_ssl_ca_file=ca_file)
    complete = settings.database_url.get_secret_value()

    table = FallbackTable(complete)
    assert (await table.open()).wanted
    assert (await table.stats()).pending == 0
    await table.close()
    assert str(await tls_version(complete)).startswith("TLS")


@pytest.mark.parametrize("name", ["ssl", "sslmode"])
async def test_the_url_alone_can_configure_tls(url: str, ca_file: Path, name: str) -> None:
    """The parameters of libpq, as hosting providers give them, do the same."""
    assert await tls_version(f"{url}?{name}=verify-full&sslrootcert={ca_file}")
    assert await tls_version(f"{url}?{name}=require")
    assert await tls_version(url)  # preferred by default


async def test_a_password_from_a_setting_of_its_own(url: str, ca_file: Path) -> None:
    """The password may be a setting of its own, with any characters."""
    settings = load_settings(
        database_url=url.replace(f"{USER}@", f"{WITH_PASSWORD}@"),
        database_password=PASSWORD,
        database_ssl_ca_file=ca_file,
    )
    assert PASSWORD in settings.secrets
    assert await tls_version(settings.database_url.get_secret_value())


async def test_a_client_certificate(
    url: str, ca_file: Path, authority: trustme.CA, tmp_path: Path
) -> None:
    """A server that demands one accepts ours, and refuses a client without one."""
    certified = url.replace(f"{USER}@", f"{CERTIFIED}@")
    settings = load_settings(
        database_url=certified,
        database_ssl_ca_file=ca_file,
        **certificate(authority, tmp_path, CERTIFIED),
    )
    assert await tls_version(settings.database_url.get_secret_value())
    with pytest.raises(DatabaseUnavailable, match="certificate"):
        await migrate(f"{certified}?sslrootcert={ca_file}")


async def test_a_client_certificate_that_the_server_refuses(
    url: str, ca_file: Path, authority: trustme.CA, tmp_path: Path
) -> None:
    """With TLS 1.3 the connection is lost after the handshake, sometimes without the alert."""
    past = datetime(2020, 1, 1, tzinfo=UTC)
    issued = (
        authority.issue_cert(common_name=CERTIFIED, not_after=past),
        trustme.CA().issue_cert(common_name=CERTIFIED),
    )
    certified = url.replace(f"{USER}@", f"{CERTIFIED}@")
    file = tmp_path / "client.pem"
    for refused in issued:
        refused.private_key_and_cert_chain_pem.write_to_path(str(file))
        with pytest.raises(DatabaseUnavailable, match="DATABASE_SSL_CERT_FILE") as caught:
            await migrate(f"{certified}?sslrootcert={ca_file}&sslcert={file}")
        # Nothing was asked of the database: it has refused no statement.
        assert not caught.value.statement_refused


async def test_what_does_not_match_is_refused(url: str, ca_file: Path, tmp_path: Path) -> None:
    """Another authority, another host name and plain text are each refused with one line."""
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    localhost = url.replace("127.0.0.1", "localhost")
    refusals = {
        f"{url}?sslrootcert={other}": "certificate verify failed: self-signed",
        f"{url}?sslmode=verify-full": "certificate verify failed: self-signed",
        f"{url}?sslmode=disable": "no pg_hba.conf entry for host .* no encryption",
        f"{localhost}?sslrootcert={ca_file}": "not valid for 'localhost'",
    }
    for wrong, line in refusals.items():
        with pytest.raises(DatabaseUnavailable, match=line) as caught:
            await migrate(wrong)
        assert "\n" not in str(caught.value)
    # verify-ca does not check the host name.
    assert await tls_version(f"{localhost}?sslmode=verify-ca&sslrootcert={ca_file}")


async def test_a_wrong_authority_is_logged_once(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker continues without the table; one line says why, although it tries often."""
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    settings = load_settings(database_url=url, database_ssl_ca_file=other)
    table = CountingTable(settings.database_url.get_secret_value())
    monkeypatch.setattr("order_relay.worker.fallback_service.OPEN_RETRY_SECONDS", 0.01)
    fallback = Fallback(settings, table, KafkaProducer(settings), Metrics())
    with caplog.at_level(logging.INFO):
        await fallback.start()
        await eventually(lambda: table.tries > 3, 30, lambda: "not tried again")
        await fallback.close()
    (line,) = [
        one.getMessage()
        for one in caplog.records
        if one.name == "order_relay.worker.fallback_service"
    ]
    assert "certificate verify failed: self-signed" in line
    assert "DATABASE_SSL_CA_FILE" in line


class CountingTable(FallbackTable):
    """Counts how often it is opened."""

    tries = 0

    async def open(self) -> Revisions:
        self.tries += 1
        return await super().open()


def test_commands_use_the_same(url: str, ca_file: Path, tmp_path: Path) -> None:
    """Migration and other commands read TLS and the password from the same settings."""
    secret = tmp_path / "password"
    secret.write_text(f"{PASSWORD}\n")
    environment = {
        "DATABASE_URL": url.replace(f"{USER}@", f"{WITH_PASSWORD}@"),
        "DATABASE_PASSWORD_FILE": secret, "DATABASE_SSL_CA_FILE": ca_file,
    }  # fmt: skip
    for command, answer in (
        (["order_relay.fallback.sql.migrate"], "The database was migrated from nothing"),
        (["order_relay", "fallback", "stats"], "PENDING"),
    ):
        done = run("-m", *command, folder=tmp_path, **environment)
        assert done.returncode == 0, done.stderr
        assert answer in done.stdout
        assert PASSWORD not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("?sslmode=yes", "sslmode='yes'.* must be one of disable, allow, prefer, require"),
        ("?sslrootcert=/missing.pem", "sslrootcert='/missing.pem'.* must be a PEM file"),
        (f"?sslrootcert={__file__}", "must be a PEM file of certificates"),
        ("?sslrootcert=system&sslmode=prefer", "must be require, verify-ca or verify-full"),
        ("?sslcert=/missing.pem", "must be a certificate and its key without a password"),
        ("?sslkey=/missing.pem", "needs sslcert"),
        ("?channel_binding=require", "unknown parameter 'channel_binding': allowed are sslmode"),
        ("?port=abc", "port='abc': it must be a number"),
        ("?port=65536", "the port 65536: it must be 1 to 65535"),
        ("?host=one&host=two:5432", "a part that cannot be used: it must be like sqlite"),
        ("?host=one:5432&host=two:99999", "the port 99999: it must be 1 to 65535"),
        ("?prepared_statement_cache_size=x", "prepared_statement_cache_size='x': it must be a nu"),
        ("postgresql://u:hunter2@h:99999/d", "the port 99999: it must be 1 to 65535"),
        ("sqlite:///x.db?mode=ro", "unknown parameter 'mode': allowed are timeout"),
        ("sqlite:///x.db?timeout=long", "a part that cannot be used: it must be like sqlite"),
        ("sqlite://u:hunter2@/x.db", "a part that cannot be used: it must be like sqlite"),
    ],
)
def test_a_mistake_in_the_url_is_one_line(url: str, line: str) -> None:
    """The error comes before connecting, says what is allowed, and has no password."""
    if url.startswith("?"):
        url = f"postgresql://u:hunter2@h/d{url}"
    with pytest.raises(InvalidDatabaseUrl, match=line) as caught:
        make_engine(url)
    assert "hunter2" not in str(caught.value)
    assert "DATABASE_URL" in str(caught.value)
    assert "\n" not in str(caught.value)
