"""Writes what each party saw into the ledger, and keeps the time."""

from __future__ import annotations

import time
from collections.abc import Callable

from demo.delivery_times import DeliveryTimes
from demo.ledger import Ledger
from demo.order_shop import Order
from order_relay.errors import RelayError


class Books:
    """The one place where facts come in: from the shop, the logger and the dead-letter topic.

    Attributes:
        ledger: What became of every order.
        times: How long the deliveries took.
        refusal: Why the shop's database refused an order the last time; empty if it never did.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.ledger = Ledger()
        self.times = DeliveryTimes()
        self.refusal = ""

    def paid(self, order: Order) -> None:
        """An order was committed."""
        self.ledger.paid(order.event_id, broken=order.broken)
        self.times.paid(order.event_id, self._clock())

    def refused(self, order: Order, error: RelayError) -> None:
        """The database refused an order; the shop tries again."""
        self.ledger.refused()
        self.refusal = str(error)

    def logged(self, event_id: str) -> None:
        """The logger answered 2xx."""
        if self.ledger.delivered(event_id):
            self.times.delivered(event_id, self._clock())

    def dead_lettered(self, event_id: str, reason: str) -> None:
        """The event is in the dead-letter topic."""
        if self.ledger.dead_lettered(event_id, reason):
            self.times.ended_otherwise(event_id)
