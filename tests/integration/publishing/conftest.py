"""Databases for the tests of the fallback table: a SQLite file and a private PostgreSQL server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.publishing.fallback import FallbackStore
from app.publishing.memory_store import MemoryFallbackStore
from app.publishing.migrate import migrate
from app.publishing.sql_store import SqlFallbackStore
from tests.support.publish_fakes import Clock
from tests.support.publish_postgres import PostgresServer, blocking, unavailable_reason


@dataclass
class Table:
    """A store under test and the clock it goes by."""

    store: FallbackStore
    clock: Clock
    kind: str


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server for the whole run."""
    if reason := unavailable_reason():
        pytest.skip(reason)
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def migrated_template(postgres: PostgresServer) -> str:
    """A database with the table in it, to copy."""
    name = postgres.create_database()
    blocking(migrate(postgres.url(name)))
    return name


@pytest.fixture
def postgres_url(postgres: PostgresServer, migrated_template: str) -> Iterator[str]:
    """A migrated PostgreSQL database of the test's own."""
    name = postgres.create_database(migrated_template)
    yield postgres.url(name)
    postgres.drop_database(name)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A migrated SQLite file of the test's own."""
    url = f"sqlite+aiosqlite:///{tmp_path / 'relay.db'}"
    blocking(migrate(url))
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Each database in turn."""
    name = "sqlite_url" if request.param == "sqlite" else "postgres_url"
    url: str = request.getfixturevalue(name)
    return url


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
async def table(request: pytest.FixtureRequest) -> AsyncIterator[Table]:
    """Each store in turn, with a clock that stands still."""
    clock = Clock()
    store: FallbackStore
    if request.param == "memory":
        store = MemoryFallbackStore(clock=clock)
    else:
        name = "sqlite_url" if request.param == "sqlite" else "postgres_url"
        store = SqlFallbackStore.connect(request.getfixturevalue(name), clock=clock)
    yield Table(store, clock, request.param)
    await store.close()
