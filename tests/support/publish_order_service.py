"""An order service as a process, to be killed: it pays orders and writes each one's id.

Arguments: the way (outbox or after-commit), DATABASE_URL, the topic, the servers, and optionally
``die``: then it kills itself with SIGKILL right after its first commit.
"""

import asyncio
import os
import signal
import sys

import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.ext.asyncio import AsyncSession

from order_relay.publishing.order_events import OrderEvents, open_order_events
from tests.support.publish_orders import Order, make_orders
from tests.support.publish_ways import paid, publish_settings


def die(_session: orm.Session) -> None:
    """End as by kill -9: no handler, no buffer, no close."""
    os.kill(os.getpid(), signal.SIGKILL)


def publish(way: str, events: OrderEvents, session: AsyncSession, number: int) -> None:
    """Publish an order's event in this way."""
    if way == "outbox":
        events.outbox.add(session, paid(number), event_id=f"order-{number}")
    else:
        events.after_commit.publish(session, paid(number), event_id=f"order-{number}")


async def main(way: str, url: str, topic: str, servers: str, *, dying: bool) -> None:
    """Pay."""
    engine = await make_orders(url)
    settings = publish_settings(servers, url, order_paid_topic=topic)
    async with open_order_events(settings) as events:
        if dying:
            sa.event.listen(orm.Session, "after_commit", die)
        number = 0
        while True:
            number += 1
            async with AsyncSession(engine) as session:
                session.add(Order(number))
                publish(way, events, session, number)
                await session.commit()
            print(number, flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:5], dying=sys.argv[5:] == ["die"]))
