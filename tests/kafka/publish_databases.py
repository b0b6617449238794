"""Databases for the publishing tests in this folder: ``pytest_plugins`` names this module."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.publishing.migrate import migrate
from tests.support.publish_postgres import PostgresServer, blocking, unavailable_reason


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One PostgreSQL server for the whole run."""
    if reason := unavailable_reason():
        pytest.skip(reason)
    with PostgresServer() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A PostgreSQL database of the test's own, with the table."""
    name = postgres_server.create_database()
    url = postgres_server.url(name)
    blocking(migrate(url))
    yield url
    postgres_server.drop_database(name)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A SQLite file of the test's own, with the table."""
    url = f"sqlite+aiosqlite:///{tmp_path / 'orders.db'}"
    blocking(migrate(url))
    return url
