"""``python -m demo.shop``: the sample order shop by itself, until SIGTERM.

It uses the worker's settings of Kafka and of the database (the environment), and pays with an
outbox row in each order's transaction. What it cannot publish, a worker's replay does.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from demo.errors import CannotRun
from demo.interruption import Interruption
from demo.options import LIVE_RATE, OneLineParser, rate
from demo.order_shop import Order, OrderGenerator, OrderShop
from demo.shop_database import ShopDatabase
from order_relay.errors import InvalidSettings, RelayError
from order_relay.kafka.producer import KafkaProducer
from order_relay.settings import Settings, load_settings

logger = logging.getLogger(__name__)

# A shop that starts anew must not sell the orders of an earlier one again.
_IDS_A_SECOND = 1000
_LAST_PAYMENTS_SECONDS = 3.0


class _Announcer:
    """Says that a payment was refused; that it was taken, the worker's log and figures say."""

    def paid(self, order: Order) -> None:
        """Say nothing."""

    def refused(self, order: Order, error: RelayError) -> None:
        """Say why."""
        logger.warning("Payment refused, tried again: %s", error)


def main(arguments: Sequence[str]) -> int:
    """Sell until SIGTERM or Ctrl-C; returns the exit status."""
    parser = OneLineParser(
        prog="python -m demo.shop",
        description="A sample order shop: pays orders at a steady rate, each with its event in an "
        "outbox; one in a hundred is no valid event.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--rate",
        type=rate,
        default=LIVE_RATE,
        metavar="R",
        help=f"payments a second (default {LIVE_RATE:g})",
    )
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="[%(asctime)s] [%(levelname)s] %(message)s")
    try:
        asyncio.run(_sell(load_settings(), given.rate))
    except (CannotRun, InvalidSettings) as error:
        sys.stderr.write(f"quickstart: {error}\n")
        return 1
    return 0


async def _sell(settings: Settings, its_rate: float) -> None:
    interruption = Interruption()
    interruption.listen()
    producer = KafkaProducer(settings)
    await producer.start()
    database = ShopDatabase(settings, producer)
    try:
        await database.open()
        now = int(time.time())
        book = OrderGenerator(seed=now, first_order_id=now * _IDS_A_SECOND)
        shop = OrderShop(book, database, _Announcer(), rate=its_rate)
        selling = asyncio.create_task(shop.run(None))
        ending = asyncio.create_task(interruption.first.wait())
        await asyncio.wait({selling, ending}, return_when=asyncio.FIRST_COMPLETED)
        shop.close()
        ending.cancel()
        with suppress(TimeoutError):  # payments that the database refuses are given up
            await asyncio.wait_for(selling, _LAST_PAYMENTS_SECONDS)
        await database.settle()
    finally:
        await database.close()
        await producer.stop()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
