"""Publishing events from an order service: to Kafka, else into the fallback table, else an error.

An order service imports from here::

    from order_relay.publishing import open_order_events
    from order_relay.settings import load_settings

    async with open_order_events(load_settings()) as events:
        events.outbox.add(session, event)
"""

from order_relay.model.trace_context import trace_headers
from order_relay.publishing.after_commit import AfterCommit, NotCommitted, PendingPublish
from order_relay.publishing.order_events import (
    OrderEvents,
    open_order_events,
    order_events_thread,
)
from order_relay.publishing.outbox import Outbox
from order_relay.publishing.publisher import Published, Publisher, Saved

__all__ = [
    "AfterCommit",
    "NotCommitted",
    "OrderEvents",
    "Outbox",
    "PendingPublish",
    "Published",
    "Publisher",
    "Saved",
    "open_order_events",
    "order_events_thread",
    "trace_headers",
]
