"""Fixtures that several folders use: the embedded cluster, the scripted sink, databases."""

import shutil
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest

from order_relay.fallback.sql.migrate import VERSION_TABLE, migrate
from tests.support.embedded import EmbeddedKafka
from tests.support.publish_postgres import PostgresServer, blocking, unavailable_reason
from tests.support.sink import ScriptedSink
from tests.support.stage import Stage
from tests.support.worker import NewWorker, WorkerProcess


@pytest.fixture(scope="session")
def embedded() -> Iterator[EmbeddedKafka]:
    """One embedded cluster for the whole run; a test that harms it makes its own."""
    with EmbeddedKafka() as cluster:
        yield cluster


@pytest.fixture
def fragile() -> Iterator[EmbeddedKafka]:
    """A cluster of the test's own, to take down."""
    with EmbeddedKafka(session_timeout_ms=None) as cluster:
        yield cluster


@pytest.fixture
def stage(embedded: EmbeddedKafka) -> Stage:
    """Topics and a group of this test's own."""
    return embedded.stage()


@pytest.fixture
async def sink() -> AsyncIterator[ScriptedSink]:
    """A scripted external logger in the test's loop."""
    async with ScriptedSink() as scripted:
        yield scripted


@pytest.fixture
def new_worker(tmp_path: Path, stage: Stage, sink: ScriptedSink) -> NewWorker:
    """Makes workers on the test's stage, for its sink."""
    return partial(WorkerProcess, tmp_path, stage, sink.url)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One PostgreSQL server for the whole run."""
    if reason := unavailable_reason():
        pytest.skip(reason)
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def migrated_template(postgres_server: PostgresServer) -> str:
    """A database with the fallback table in it, to copy."""
    name = postgres_server.create_database()
    blocking(migrate(postgres_server.url(name)))
    return name


@pytest.fixture(scope="session")
def spare_databases() -> list[str]:
    """Copies of the template that earlier tests have used, empty again."""
    return []


@pytest.fixture
def postgres_url(
    postgres_server: PostgresServer, migrated_template: str, spare_databases: list[str]
) -> Iterator[str]:
    """A PostgreSQL database of the test's own, with the fallback table."""
    if spare_databases:
        name = spare_databases.pop()
    else:
        name = postgres_server.create_database(migrated_template)
    yield postgres_server.url(name)
    if postgres_server.empty_database(name, migrated_template, keep=VERSION_TABLE):
        spare_databases.append(name)
    else:
        postgres_server.drop_database(name)


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the fallback table in it, to copy."""
    path = tmp_path_factory.mktemp("sqlite") / "migrated.db"
    blocking(migrate(f"sqlite+aiosqlite:///{path}"))
    return path


@pytest.fixture
def sqlite_url(migrated_file: Path, tmp_path: Path) -> str:
    """A SQLite file of the test's own, with the fallback table."""
    path = tmp_path / "relay.db"
    shutil.copy(migrated_file, path)
    return f"sqlite+aiosqlite:///{path}"
