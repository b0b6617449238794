"""This application: ``faust -A app worker`` runs the consumers of ``agents``.

``app.app`` is the Faust application. It is made on first use, so that importing this module does
not load Faust.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from order_relay.worker import RelayApp

    app: RelayApp


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from order_relay.worker import create_app  # noqa: PLC0415 - loads Faust

    # Before the import: a module of agents may import ``app.app``.
    made = globals()["app"] = create_app()
    made.import_consumers("agents", "tables")
    return made
