"""The Faust tables, imported by name as the agents are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tables import deliveries

if TYPE_CHECKING:
    from app.main import RelayApp


def register(app: RelayApp) -> None:
    """Register every table with the application."""
    deliveries.register(app)
