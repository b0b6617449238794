"""Detecting an outage of Kafka, so that publishers do not wait for the delivery time-out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from order_relay.errors import KafkaUnavailable
from order_relay.kafka.reachability import Pingable

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 2.0
# A broker answers the requests of a connection one after another. A record whose replica has died
# waits until the controller removes the replica: 9 s, and longer if that was the controller itself.
# Two pings behind such a record must not turn one broker's failure into an outage.
PING_TIMEOUT_SECONDS = 6.0
# So many unanswered pings in a row make an outage.
PINGS_UNTIL_OUTAGE = 2


class OutageWatch:
    """Pings the brokers at intervals.

    Attributes:
        reason: Why Kafka counts as unreachable; empty while it answers and before the first ping.
    """

    def __init__(self, producer: Pingable, interval_seconds: float = INTERVAL_SECONDS) -> None:
        """Prepare; nothing is sent yet."""
        self._producer = producer
        self._interval_seconds = interval_seconds
        self._ping_now = asyncio.Event()
        self.reason = ""

    def ask_now(self) -> None:
        """Ping at once, as after the start of the producer."""
        self._ping_now.set()

    async def run(self, on_outage: Callable[[], None] = lambda: None) -> None:
        """Ping until cancelled; never raises otherwise.

        Args:
            on_outage: Called when an outage begins.
        """
        unanswered = 0
        while True:
            self._ping_now.clear()
            try:
                await self._producer.ping(PING_TIMEOUT_SECONDS)
            except KafkaUnavailable as error:
                unanswered += 1
                if unanswered >= PINGS_UNTIL_OUTAGE:
                    begins, self.reason = not self.reason, str(error)
                    if begins:
                        on_outage()
            except Exception:  # any other error says nothing about the brokers
                logger.exception("Kafka could not be asked")
            else:
                unanswered = 0
                self.reason = ""
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ping_now.wait(), self._interval_seconds)
