"""From the stream of ORDER_PAID records to the relay: an adapter, nothing more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import faust

if TYPE_CHECKING:
    from app.main import RelayApp


def register(app: RelayApp) -> None:
    """Register the agent that takes records in."""

    @app.agent(app.order_paid_topic, name="order_logging")
    async def order_logging(stream: faust.StreamT[bytes]) -> None:
        """Take each record in, in offset order; waits while the relay has no room."""
        async for event in stream.noack().events():
            await app.take(event.message)
