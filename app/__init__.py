"""The order relay: every ORDER_PAID event reaches the external logger or the dead letters.

``app.app`` is the Faust application, made on first use, so that ``faust -A app worker`` works
while the pure modules import without Faust.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from order_relay.worker.app import RelayApp

    app: RelayApp

# What others than its owner may do with a file that is made: nothing.
OWNER_ALONE = 0o077


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _make_app()


def _make_app() -> RelayApp:
    # Imported only now: nobody who wants the pure modules waits for Faust.
    from order_relay import cli  # noqa: F401, PLC0415 - importing registers the commands
    from order_relay.errors import (  # noqa: PLC0415
        InvalidConsumer,
        InvalidDatabaseUrl,
        InvalidSettings,
    )
    from order_relay.logs import json_format  # noqa: PLC0415
    from order_relay.logs.standard_streams import open_closed, take_any_text  # noqa: PLC0415
    from order_relay.settings.consumers import choose, configure, find_consumers, import_modules  # noqa: PLC0415
    from order_relay.settings.settings import load_log_format, load_settings  # noqa: PLC0415
    from order_relay.worker.app import create_app  # noqa: PLC0415
    from order_relay.worker.faust_worker import use_worker  # noqa: PLC0415

    open_closed()
    take_any_text()
    os.umask(OWNER_ALONE)  # SQLite's files and RocksDB's hold orders
    in_json = load_log_format() == "json"
    if in_json:
        json_format.set_up()
    try:
        settings = load_settings()
        # At once: a module of agents may import it.
        made = globals()["app"] = create_app(settings)
        modules = import_modules("agents", settings.consumer_folders)
        for module in (*import_modules("tables"), *modules):
            if register := getattr(module, "register", None):
                register(made)
        declared = configure(find_consumers(modules), settings)
        made.run_consumers(choose(declared, settings.consumers), declared)
    except (InvalidSettings, InvalidDatabaseUrl, InvalidConsumer) as error:
        # A user's mistake gets one line, not a stack trace.
        if in_json:
            logging.getLogger(__name__).critical(str(error))
        raise SystemExit(1 if in_json else str(error)) from None
    use_worker(made, settings)
    return made
