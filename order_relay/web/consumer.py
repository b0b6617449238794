"""One consumer of this worker, as the web server and the console show and change it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from order_relay.dead_letters.open_letters import OpenLetters
from order_relay.deliveries.lookup import OrderLookup
from order_relay.delivery.dispatcher import Dispatcher
from order_relay.monitoring.health import Health
from order_relay.monitoring.history import History
from order_relay.monitoring.stats import Stats
from order_relay.settings import Settings

if TYPE_CHECKING:
    from order_relay.dead_letters.open_topic import OpenTopic


@dataclass(frozen=True, slots=True)
class ServedConsumer:
    """One consumer of this worker.

    Attributes:
        settings: Its settings.
        health: Shown by ``/health``.
        stats: Shown by ``/stats`` and the console.
        history: Shown by ``/history``.
        orders: Finds orders; None: the deliveries table is switched off.
        letters: Its open dead letters.
        open_topic: Opens its dead-letter topic.
        dispatcher: Sends probes, and can be paused.
        one_job: Held while a job changes letters: the next one waits, instead of being refused.
    """

    settings: Settings
    health: Health
    stats: Stats
    history: History
    orders: OrderLookup | None
    letters: OpenLetters
    open_topic: Callable[[], AbstractAsyncContextManager[OpenTopic]]
    dispatcher: Dispatcher
    one_job: asyncio.Lock = field(default_factory=asyncio.Lock)

    def do(self, action: str) -> None:
        """Pause, resume or probe."""
        if action == "probe":
            self.dispatcher.probe_now()
        else:
            self.dispatcher.pause(action == "pause")
