"""The outbox table. The relay has migrations of its own for it, and this runs them."""

import asyncio
from typing import Any

from django.db import migrations

from app.relay import relay_settings
from order_relay.fallback.sql.migrate import migrate


def make_outbox(_apps: Any, schema_editor: Any) -> None:
    """Bring the table up to date, in the database that Django migrates: a test's, in tests."""
    settings = relay_settings(schema_editor.connection)
    asyncio.run(migrate(settings.database_url.get_secret_value()))


class Migration(migrations.Migration):
    """Makes it. Add another one like this after an update of the relay, or let a worker do it."""

    # The relay has a connection of its own: Django's must not hold the database meanwhile.
    atomic = False
    dependencies = [("app", "0001_orders")]
    operations = [migrations.RunPython(make_outbox, migrations.RunPython.noop)]
