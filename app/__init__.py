"""The order relay: every ORDER_PAID event reaches the external logger or the dead letters.

``app.app`` is the Faust application, made on first use, so that ``faust -A app worker`` works
while the pure modules import without Faust.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.main import RelayApp

    app: RelayApp


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = globals()["app"] = _make_app()
    return made


def _make_app() -> RelayApp:
    # Imported only now: nobody who wants the pure modules waits for Faust.
    import agents  # noqa: PLC0415
    import tables  # noqa: PLC0415
    from app.errors import InvalidDatabaseUrl, InvalidSettings  # noqa: PLC0415
    from app.main import create_app  # noqa: PLC0415
    from app.operations import commands  # noqa: F401, PLC0415 - importing registers them
    from app.settings import load_settings  # noqa: PLC0415

    try:
        made = create_app(load_settings())
    except (InvalidSettings, InvalidDatabaseUrl) as error:
        # A user's mistake gets one line, not a stack trace.
        raise SystemExit(str(error)) from None
    tables.register(made)
    agents.register(made)
    return made
