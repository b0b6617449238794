"""An order service as a process: it pays orders on request, each in one transaction.

Its argument is the way to publish: after-commit, outbox or plain-sql; with another one, ``die``, it
kills itself right after its first commit. Its settings are the relay's own, from the environment.
Each line of its standard input is the number of the last order that it may pay. It stops when the
input ends.

It prints ``paid 7`` when the order is committed; then the result, ``published 7 0 42`` with
partition and offset, or ``saved 7``; and the result of each record sent to Kafka: ``refused order-7
2`` or ``acknowledged order-7 2``, with the number of others refused while it was in flight.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias
from unittest.mock import patch

import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.ext.asyncio import AsyncSession

from order_relay.kafka.producer import Acknowledged, KafkaProducer
from order_relay.model.headers import Headers
from order_relay.publishing.after_commit import PendingPublish
from order_relay.publishing.order_events import open_order_events
from order_relay.publishing.publisher import Published, Saved
from order_relay.settings import Settings, load_settings
from tests.support.orders import order_value
from tests.support.publish_orders import Order, make_orders

# Each buyer pays one order after another, so orders of one key are committed in order.
BUYERS = 40
KEYS = 200

AFTER_COMMIT, OUTBOX, PLAIN_SQL = "after-commit", "outbox", "plain-sql"

HandIn: TypeAlias = Callable[[AsyncSession, int], Awaitable[object]]

# As in docs/how-to/outbox.md.
INSERT = sa.text(
    "INSERT INTO kafka_fallback_message (topic, message_key, payload, headers)"
    " VALUES (:topic, :key, :payload, :headers)"
)


def order_key(number: int) -> str:
    """The key of an order's event."""
    return f"key-{number % KEYS}"


def order_event_id(number: int) -> str:
    """The id of an order's event."""
    return f"order-{number}"


class WatchedProducer(KafkaProducer):
    """Prints the result of each record."""

    refused = 0

    async def send(
        self,
        topic: str,
        *,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        partition: int | None = None,
    ) -> Acknowledged:
        """See ``KafkaProducer.send``."""
        event_id = (dict(headers)["event-id"] or b"").decode()
        refused_before = self.refused
        try:
            acknowledged = await super().send(
                topic,
                key=key,
                value=value,
                headers=headers,
                partition=partition,
            )
        except BaseException:
            print("refused", event_id, self.refused - refused_before)
            self.refused += 1
            raise
        print("acknowledged", event_id, self.refused - refused_before)
        return acknowledged


@contextlib.asynccontextmanager
async def after_commit(settings: Settings) -> AsyncIterator[HandIn]:
    """Publish each event after the commit; at the end print each result."""
    pending: dict[int, PendingPublish] = {}
    async with open_order_events(settings) as events:

        async def hand_in(session: AsyncSession, number: int) -> None:
            pending[number] = events.after_commit.publish(
                session,
                order_value(number),
                event_id=order_event_id(number),
                key=order_key(number).encode(),
            )

        yield hand_in
    for number, one in pending.items():
        match await one:
            case Published(partition=partition, offset=offset):
                print("published", number, partition, offset)
            case Saved():
                print("saved", number)


@contextlib.asynccontextmanager
async def outbox(settings: Settings) -> AsyncIterator[HandIn]:
    """Write each event's row with the order."""
    async with open_order_events(settings) as events:

        async def hand_in(session: AsyncSession, number: int) -> None:
            events.outbox.add(
                session,
                order_value(number),
                event_id=order_event_id(number),
                key=order_key(number).encode(),
            )

        yield hand_in


@contextlib.asynccontextmanager
async def plain_sql(settings: Settings) -> AsyncIterator[HandIn]:
    """Write each event's row by plain SQL, without Kafka."""
    yield lambda session, number: session.execute(
        INSERT,
        {
            "topic": settings.order_paid_topic,
            "key": order_key(number),
            "payload": order_value(number).decode(),
            "headers": f'{{"event-id":"{order_event_id(number)}"}}',
        },
    )


WAYS = {AFTER_COMMIT: after_commit, OUTBOX: outbox, PLAIN_SQL: plain_sql}


def die(_session: orm.Session) -> None:
    """End as by kill -9: no handler, no buffer, no close."""
    os.kill(os.getpid(), signal.SIGKILL)


async def main(way: str, end: str = "") -> None:
    """Pay the orders."""
    if end == "die":
        sa.event.listen(orm.Session, "after_commit", die)
    settings = load_settings()
    engine = await make_orders(settings.database_url.get_secret_value())

    async def pay(number: int, hand_in: HandIn) -> None:
        async with AsyncSession(engine) as session, session.begin():
            session.add(Order(number))
            await hand_in(session, number)
        print("paid", number)

    async def buyer(numbers: range, hand_in: HandIn) -> None:
        for number in numbers:
            await pay(number, hand_in)

    async with WAYS[way](settings) as hand_in:
        paid = 0
        while line := await asyncio.to_thread(sys.stdin.readline):
            first, paid = paid + 1, int(line)
            await asyncio.gather(
                *(buyer(range(first + n, paid + 1, BUYERS), hand_in) for n in range(BUYERS))
            )
    await engine.dispose()


if __name__ == "__main__":
    with patch("order_relay.publishing.order_events.KafkaProducer", WatchedProducer):
        asyncio.run(main(*sys.argv[1:]))
