"""The agents, imported by name: autodiscovery only warns when a module fails to import."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agents import fallback_replay, order_logging

if TYPE_CHECKING:
    from app.main import RelayApp


def register(app: RelayApp) -> None:
    """Register every agent with the application."""
    order_logging.register(app)
    fallback_replay.register(app)
