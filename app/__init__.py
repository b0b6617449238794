"""This application: ``faust -A app worker`` runs the consumers of ``agents``.

``app.app`` is the Faust application, made on first use: importing this module loads no Faust.
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

    # At once: a module of agents may import it.
    made = globals()["app"] = create_app()
    made.import_consumers("agents", "tables")
    return made
