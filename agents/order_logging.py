"""From the stream of ORDER_PAID records to the relay: an adapter, nothing more."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import faust

from app.delivery.record import Record

if TYPE_CHECKING:
    from app.main import RelayApp


def register(app: RelayApp) -> None:
    """Register the agent that takes records in."""

    @app.agent(app.order_paid_topic, name="order_logging")
    async def order_logging(stream: faust.StreamT[list[Record]]) -> None:
        """Take each record in, in offset order; waits while the relay has no room."""
        # Acks are not Faust's business here: see app.transport.
        async for batch in cast(faust.Stream[list[Record]], stream).noack():
            for record in batch:
                await app.take(record)
