"""Each store of the fallback table in turn, and a topic to publish to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from order_relay.fallback.store import Claim
from order_relay.fallback.table import FallbackTable
from tests.support.memory_store import MemoryFallbackStore
from tests.support.publish_fakes import Clock, message
from tests.support.publish_postgres import PostgresServer
from tests.support.stage import Stage

ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
ON_POSTGRESQL = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@dataclass
class Table:
    """A store under test and its clock."""

    store: FallbackTable
    clock: Clock

    async def save(self, *keys: bytes | None) -> None:
        """Save a message of each key."""
        for key in keys:
            await self.store.save(message(key=key))

    async def claim(self, limit: int = 10, lease_seconds: float = 60, **options: Any) -> Claim:
        """See ``FallbackTable.claim``."""
        return await self.store.claim(limit=limit, lease_seconds=lease_seconds, **options)


@pytest.fixture
def cluster(stage: Stage) -> str:
    """The bootstrap servers of the embedded cluster."""
    return stage.bootstrap_servers


@pytest.fixture
def topic(stage: Stage) -> str:
    """A topic of the test's own."""
    return stage.topic


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Each database in turn."""
    name = "sqlite_url" if request.param == "sqlite" else "postgres_url"
    url: str = request.getfixturevalue(name)
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'ne w%.db'}"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.url(server.create_database())


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[FallbackTable]:
    """A store on each database in turn, or on that of ``ON_SQLITE`` or ``ON_POSTGRESQL``."""
    store = FallbackTable(database_url)
    await store.open()
    yield store
    await store.close()


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
async def table(request: pytest.FixtureRequest) -> AsyncIterator[Table]:
    """Each store in turn, with a clock that the test advances."""
    clock = Clock()
    store: FallbackTable = MemoryFallbackStore(clock=clock)
    if request.param != "memory":
        name = "sqlite_url" if request.param == "sqlite" else "postgres_url"
        store = opened = FallbackTable(request.getfixturevalue(name), clock=clock)
        await opened.open()
    yield Table(store, clock)
    await store.close()
