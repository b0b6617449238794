"""The relay's settings: from the environment, but for the database, which is Django's."""

from django.db import connection
from django.db.backends.base.base import BaseDatabaseWrapper
from sqlalchemy import URL

from order_relay.settings import Settings, load_settings


def relay_settings(database: BaseDatabaseWrapper = connection) -> Settings:
    """Return settings whose DATABASE_URL is the database that Django is connected to."""
    given = database.settings_dict
    if database.vendor == "sqlite":
        return load_settings(database_url=f"sqlite:///{given['NAME']}")
    url = URL.create(
        "postgresql",
        given["USER"] or None,
        given["PASSWORD"] or None,
        given["HOST"] or None,
        int(given["PORT"] or 5432),
        given["NAME"],
    )
    return load_settings(database_url=url.render_as_string(hide_password=False))
