"""Commands inspect the fallback table without changing it."""

import click
import pytest
import sqlalchemy as sa

from order_relay.cli.fallback.rows import check_revisions
from order_relay.errors import DatabaseTooNew
from order_relay.fallback.sql.migrate import VERSION_TABLE, Revisions
from order_relay.fallback.table import FallbackTable


async def tables(table: FallbackTable) -> list[str]:
    """The tables of its database."""
    async with table.engine.connect() as connection:
        return await connection.run_sync(lambda plain: sa.inspect(plain).get_table_names())


async def test_looking_changes_nothing(empty_url: str) -> None:
    """No table, this version's, an older or a newer one: reported, and not migrated."""
    table = FallbackTable(empty_url)
    none = await table.look()
    assert none.found is None
    with pytest.raises(click.ClickException, match="there is no fallback table at DATABASE_URL="):
        check_revisions(table, none)
    assert await tables(table) == []
    newest = (await table.open()).wanted
    assert await table.look() == Revisions(newest, newest)
    check_revisions(table, await table.look())
    with pytest.raises(click.ClickException, match="at revision 0000, older than this version's"):
        check_revisions(table, Revisions("0000", newest))
    async with table.engine.begin() as connection:
        await connection.execute(sa.text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))  # noqa: S608 - our own name
    with pytest.raises(DatabaseTooNew, match="9999"):
        await table.look()
    await table.close()
