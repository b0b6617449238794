"""The in-memory store and real databases give the same answers."""

from hypothesis import HealthCheck, example, given, settings

from order_relay.fallback.store import RowFilter
from order_relay.fallback.table import FallbackTable
from tests.support.memory_store import MemoryFallbackStore
from tests.support.publish_claims import Life, Step, steps
from tests.support.publish_fakes import Clock
from tests.support.publish_postgres import blocking

EMPTY = {
    "sqlite": ("DELETE FROM kafka_fallback_message", "DELETE FROM sqlite_sequence"),
    "postgresql": ("TRUNCATE kafka_fallback_message RESTART IDENTITY",),
}


# Each example empties the table itself, so one fixture serves all of them.
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(life=steps)
@example(life=[("save", b"a"), ("take", 0, 1, False), ("pass", 1), ("renew", 0)])
def test_memory_and_database_give_the_same_answers(database_url: str, life: list[Step]) -> None:
    """Every claim, settlement and row is the same in memory and in the database."""
    blocking(_compare(database_url, life))


async def _compare(database_url: str, life: list[Step]) -> None:
    clock, twin_clock = Clock(), Clock()
    store = FallbackTable(database_url, clock=clock)
    try:
        await store.open()
        async with store.engine.begin() as connection:
            for statement in EMPTY[store.engine.dialect.name]:
                await connection.exec_driver_sql(statement)
        real, twin = Life(store, clock), Life(MemoryFallbackStore(clock=twin_clock), twin_clock)
        for step in life:
            await real.play(step)
            await twin.play(step)
            assert real.told == twin.told
        rows = [_comparable(row) for row in await real.store.find(RowFilter(), limit=1000)]
        assert rows == [_comparable(row) for row in await twin.store.find(RowFilter(), limit=1000)]
    finally:
        await store.close()


def _comparable(row: object) -> dict[str, object]:
    """The row's fields; of the random token, only whether it is set."""
    fields = {name: getattr(row, name) for name in row.__slots__}  # type: ignore[attr-defined]
    fields["lease_token"] = fields["lease_token"] is not None
    return fields
