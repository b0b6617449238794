"""The fallback table behind a real PgBouncer with transaction pooling."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest
from sqlalchemy import make_url

from order_relay.fallback.replay import Replay
from order_relay.fallback.sweep import Sweep
from order_relay.fallback.table import FallbackTable
from tests.support.publish_fakes import FakeProducer, message
from tests.support.publish_postgres import PgBouncer, PostgresServer, find_binary

ROWS = 300


@pytest.fixture
def pooled_url(postgres_server: PostgresServer, postgres_url: str) -> Iterator[str]:
    """The database of this test, through a pooler."""
    if find_binary("pgbouncer") is None:
        pytest.skip("PgBouncer is not installed (Debian: apt-get install pgbouncer)")
    pooler = PgBouncer(postgres_server)
    yield make_url(postgres_url).set(port=pooler.port).render_as_string(hide_password=False)
    pooler.close()


async def test_workers_behind_a_pooler(pooled_url: str) -> None:
    """Two workers open the table, save at once and publish: no statement fails, no row is lost."""
    tables = [FallbackTable(pooled_url) for _ in range(2)]
    for table in tables:
        await table.open()

    async def save(number: int) -> None:
        await tables[number % 2].save(message(b"%d" % number, b"%d" % number))
        if number % 10 == 0:
            await tables[number % 2].stats()

    await asyncio.gather(*(save(number) for number in range(ROWS)))
    producer = FakeProducer()
    swept = await asyncio.gather(
        *(Replay(table, producer, batch_size=20).run_once() for table in tables)
    )
    assert sum(one.published for one in swept) == ROWS
    assert {replace(one, published=0) for one in swept} == {Sweep()}
    assert {one.value for one in producer.sent} == {b"%d" % n for n in range(ROWS)}
    assert (await tables[0].stats()).published == ROWS
    for table in tables:
        await table.close()
