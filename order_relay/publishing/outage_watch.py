"""Whether Kafka is known to be away, so that nobody waits two minutes to hear what is known."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from order_relay.errors import KafkaUnavailable
from order_relay.kafka.reachability import Pingable

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 2.0
# A broker answers one request of a connection after the other, and a record whose replica has died
# waits until the controller gives that one up: 9 s, and some more where it was the controller.
# Two questions that stand behind such a record must not make an outage of one broker's end.
PING_TIMEOUT_SECONDS = 6.0
# So many questions without an answer, one after another, make an outage.
UNANSWERED = 2


class OutageWatch:
    """Asks now and then whether a broker answers.

    Attributes:
        reason: Why Kafka is taken to be away; empty while it answers, or nobody asked yet.
    """

    def __init__(self, producer: Pingable, interval_seconds: float = INTERVAL_SECONDS) -> None:
        """Prepare to ask through ``producer``."""
        self._producer = producer
        self._interval_seconds = interval_seconds
        self._is_wanted = asyncio.Event()
        self.reason = ""

    def ask_now(self) -> None:
        """Ask at once: what was answered before says nothing any more."""
        self._is_wanted.set()

    async def run(self, on_outage: Callable[[], None] = lambda: None) -> None:
        """Ask until cancelled; never raises otherwise.

        Args:
            on_outage: Called when an outage begins.
        """
        unanswered = 0
        while True:
            self._is_wanted.clear()
            try:
                await self._producer.ping(PING_TIMEOUT_SECONDS)
            except KafkaUnavailable as error:
                unanswered += 1
                if unanswered >= UNANSWERED:
                    begins, self.reason = not self.reason, str(error)
                    if begins:
                        on_outage()
            except Exception:  # whatever a client raises, it is no answer about the brokers
                logger.exception("Kafka could not be asked")
            else:
                unanswered = 0
                self.reason = ""
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_wanted.wait(), self._interval_seconds)
