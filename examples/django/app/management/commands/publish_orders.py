"""``python manage.py publish_orders``: the worker that publishes what the outbox holds."""

import asyncio
import signal
from typing import Any

from django.core.management.base import BaseCommand

from app.relay import relay_settings
from order_relay.publishing import open_order_events


class Command(BaseCommand):
    """Publishes until it is stopped. Several may run: each row is published by one of them."""

    help = "Publish the events of committed orders until SIGTERM or Ctrl-C."

    def handle(self, *_args: Any, **_options: Any) -> None:
        """Run."""
        asyncio.run(publish_until_stopped())


async def publish_until_stopped() -> None:
    """Publish rows as soon as a sweep finds them: each FALLBACK_REPLAY_INTERVAL_SECONDS."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with open_order_events(relay_settings()):
        await stopped.wait()
