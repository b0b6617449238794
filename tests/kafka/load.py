"""Orders published at a steady rate, also while brokers are down."""

import asyncio
from collections.abc import Iterable
from typing import Self

from confluent_kafka import KafkaError, Message, Producer

from tests.support.orders import Order, order
from tests.support.stage import PARTITION_UA, Stage

TICK_SECONDS = 0.05
FLUSH_SECONDS = 120


class Load:
    """A producer that publishes until ``settle``; no call blocks the test's loop.

    It is idempotent, with acks=all and a time-out of minutes: its orders reach Kafka once, in
    order, as soon as Kafka is up. Orders have ids from 1; ids of one key ascend.

    Attributes:
        produced: Ids of the orders handed to the producer.
        event_ids: Of the acknowledged orders.
        places: Partition and offset of the last acknowledged order of each key.
    """

    def __init__(self, stage: Stage, *, keys: int) -> None:
        """Publish to the stage's topic, over ``keys`` keys in turn."""
        self.produced = 0
        self.event_ids: set[str] = set()
        self.places: dict[str, tuple[int, int]] = {}
        self._stage = stage
        self._keys = keys
        self._failures: list[KafkaError] = []
        self._unplaced: set[bytes] = set()
        self._pacing: asyncio.Task[None] | None = None
        self._producer = Producer(
            {
                "bootstrap.servers": stage.bootstrap_servers,
                "acks": "all",
                "enable.idempotence": True,
                "linger.ms": 5,
                "partitioner": "murmur2_random",
                "delivery.timeout.ms": 300_000,
                "socket.timeout.ms": 3_000,  # then a frozen broker is given up
                "reconnect.backoff.max.ms": 500,
                "log_level": 0,
            }
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop()
        self._producer.purge(blocking=False)

    def publish(self, count: int, *, key: str | None = None, partition: int | None = None) -> None:
        """Publish more orders; all with one key, or to one partition, if given."""
        ids = range(self.produced + 1, self.produced + count + 1)
        self.produced += count
        self._produce(
            order(n, key=key or f"key-{n % self._keys}", partition=partition) for n in ids
        )

    def flow(self, rate: int) -> None:
        """Publish about ``rate`` orders a second from now on, until ``stop``."""
        self._pacing = asyncio.create_task(self._flow(rate))

    def stop(self) -> None:
        """End the flow."""
        if self._pacing is not None:
            self._pacing.cancel()

    async def settle(self) -> None:
        """End the flow and wait until Kafka has acknowledged everything."""
        self.stop()
        left = await asyncio.to_thread(self._producer.flush, FLUSH_SECONDS)
        assert (left, self._failures) == (0, [])
        await self._find_places()
        assert len(self.event_ids) == self.produced

    async def _flow(self, rate: int) -> None:
        while True:
            self.publish(max(round(rate * TICK_SECONDS), 1))
            await asyncio.sleep(TICK_SECONDS)

    def _produce(self, orders: Iterable[Order]) -> None:
        for one in orders:
            self._producer.produce(
                self._stage.topic,
                one.value,
                one.key,
                partition=PARTITION_UA if one.partition is None else one.partition,
                on_delivery=self._on_delivery,
            )
        self._producer.poll(0)

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failures.append(error)
            return
        key, value = message.key(), message.value()
        assert isinstance(key, bytes)
        assert isinstance(value, bytes)
        partition, offset = message.partition(), message.offset()
        if partition is None or offset is None or offset < 0:
            self._unplaced.add(value)
        else:
            self._place(key, (partition, offset))

    async def _find_places(self) -> None:
        """Look up the offsets of resent orders that Kafka had already: its answer has none."""
        for row in await self._stage.records() if self._unplaced else ():
            if row.value in self._unplaced:
                self._unplaced.remove(row.value)
                self._place(row.key or b"", (row.partition, row.offset))

    def _place(self, key: bytes, place: tuple[int, int]) -> None:
        self.event_ids.add(f"{self._stage.topic}-{place[0]}-{place[1]}")
        name = key.decode()
        self.places[name] = max(place, self.places.get(name, place))
