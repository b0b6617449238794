"""Makes the Faust application from the environment."""

from __future__ import annotations

import os

from order_relay import cli  # noqa: F401 - importing registers the commands
from order_relay.logs import json_format
from order_relay.logs.standard_streams import escape_unencodable, open_closed_streams
from order_relay.settings import load_settings
from order_relay.settings.settings import load_log_format
from order_relay.worker.faust_worker import use_worker
from order_relay.worker.mistakes import mistakes_in_one_line
from order_relay.worker.relay_app import RelayApp, make_app

# What others than its owner may do with a file that is made: nothing.
OWNER_ALONE = 0o077


def create_app() -> RelayApp:
    """Make the app that ``faust -A <module> worker`` runs, with settings from the environment.

    Its consumers follow with ``import_consumers``::

        app = create_app()
        app.import_consumers("agents")

    Nothing is connected yet.

    Raises:
        SystemExit: A setting is wrong; told in one line.
    """
    open_closed_streams()
    escape_unencodable()
    os.umask(OWNER_ALONE)  # SQLite's files and RocksDB's hold orders
    if load_log_format() == "json":
        json_format.set_up()
    with mistakes_in_one_line():
        settings = load_settings()
        app = make_app(settings)
    use_worker(app, settings)
    return app
