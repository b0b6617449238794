"""Collects what each party saw: the shop, its database, the loggers, Kafka and the worker."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from typing import Any, NoReturn

import aiohttp
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, TopicPartition

from demo.command_line import ORDER_LOGGING, Options
from demo.ledger import ConsumerLedger, Ledger
from demo.logger import LoggerScript
from demo.shop import Order, ShopDatabase
from order_relay.errors import DatabaseUnavailable
from order_relay.kafka.client_config import client_config
from order_relay.settings import Settings

logger = logging.getLogger(__name__)

# Every event is a row for a moment; one is saved when publishing it at once has failed.
SAVED_AFTER_SECONDS = 1.0
TABLE_EVERY_SECONDS = 0.5
WORKER_EVERY_SECONDS = 1.0
RATE_FRAMES = 11
ORDER_TOPIC = Settings.model_fields["order_paid_topic"].default
# Enough for exact percentiles of a counted run; older ones make room.
KEPT_TIMES = 10_000
READY = "ready"
# The longest start of the worker.
START_SECONDS = 60.0
_LAST_LOOK_SECONDS = 10.0


class Phase(StrEnum):
    """How far the demo is."""

    STARTING = "starting"
    RUNNING = "running"
    FINISHING = "waiting for the last orders"
    STOPPING = "stopping, the worker finishes what it has begun"


class Collector:
    """Writes each fact into the ledgers, and holds what is shown.

    Attributes:
        options: What the user asked for.
        logger: What the sample logger did.
        phase: How far the demo is.
        opened_at: When the shop opened, on the clock.
        ledger: What became of every order.
        consumers: The ledgers of the consumers beside order_logging.
        rates: Payments and deliveries a second, lately.
        pending: Saved rows that replay will publish by itself; failed ones wait for a person.
        answer: How the worker answers when it is asked whether it is ready.
        stats: What it says at ``/stats``, by consumer; empty while it does not answer.
        kafka_is_down: Whether the embedded cluster is out of reach.
        kafka_outages: How often it was.
        warnings: The worker's last warnings, one of each kind.
        places: Names and values of what to read on: log, console, commands.
    """

    def __init__(
        self, options: Options, logger: LoggerScript, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._began_at = self._moved_at = clock()
        self._progress = (0, 0, 0)
        self._closing = asyncio.Event()
        self._readings: deque[tuple[float, int, int]] = deque(maxlen=RATE_FRAMES)
        self._paid_at: dict[str, float] = {}  # of open orders
        self._took: deque[tuple[float, float]] = deque(maxlen=KEPT_TIMES)
        self.options = options
        self.logger = logger
        self.phase = Phase.STARTING
        self.opened_at: float | None = None
        self.ledger = Ledger()
        names = [name for name in options.consumers if name != ORDER_LOGGING]
        self.consumers = [ConsumerLedger(name, self.ledger) for name in names]
        self.rates = (0.0, 0.0)
        self.pending = 0
        self.answer = ""
        self.stats: dict[str, Mapping[str, Any]] = {}
        self.kafka_is_down = False
        self.kafka_outages = 0
        self.warnings: Sequence[str] = ()
        self.places: Mapping[str, str] = {}

    @property
    def elapsed_seconds(self) -> float:
        """Since all was started."""
        return self._clock() - self._began_at

    @property
    def open_seconds(self) -> float:
        """Since the shop opened; 0 before."""
        return 0.0 if self.opened_at is None else self._clock() - self.opened_at

    @property
    def worker(self) -> str:
        """How the worker is, in a word or two."""
        return {Phase.STARTING: "starting", Phase.STOPPING: "finishing"}.get(
            self.phase, self.answer
        )

    def percentiles(self, last_seconds: float = math.inf) -> list[float]:
        """Return p50, p95 and p99 (nearest rank) of the last delivery times, or nothing."""
        since = self._clock() - last_seconds
        seconds = sorted(took for at, took in self._took if at > since)
        ranks = [math.ceil(share * len(seconds)) - 1 for share in (0.50, 0.95, 0.99)]
        return [seconds[rank] for rank in ranks] if seconds else []

    def measure_rates(self) -> None:
        """Take the readings of one frame; the rates are over the last frames."""
        balance = self.ledger.balance()
        self._readings.append((self._clock(), balance.paid, balance.delivered))
        (then, paid, delivered), (now, *_) = self._readings[0], self._readings[-1]
        if now > then:
            seconds = now - then
            self.rates = (balance.paid - paid) / seconds, (balance.delivered - delivered) / seconds

    def is_settled(self) -> bool:
        """Whether nothing is on its way, neither in Kafka nor in the shop's database."""
        waiting = (self.ledger.balance().open, self.pending, *(one.open for one in self.consumers))
        return not any(waiting)

    def is_stalled(self) -> bool:
        """Whether nothing has moved for longer than the user of a counted run wants to wait.

        Records in the worker are moving: it retries a hopeless one for long before it gives it up.
        So is a worker that starts.
        """
        balance = self.ledger.balance()
        others = sum(one.finished for one in self.consumers)
        progress = (balance.paid, balance.finished, others)
        busy = any(one["in_flight"] or one["held"] for one in self.stats.values())
        starts = self.phase is Phase.STARTING and self.elapsed_seconds < START_SECONDS
        if starts or busy or progress != self._progress:
            self._moved_at, self._progress = self._clock(), progress
        quiet_seconds = self._clock() - self._moved_at
        return self.options.orders is not None and quiet_seconds > self.options.give_up_after

    def paid(self, order: Order) -> None:
        """An order was committed."""
        self.ledger.paid(order.event_id, broken=order.broken)
        self._paid_at[order.event_id] = self._clock()

    def logged(self, event_id: str) -> None:
        """The logger answered 2xx."""
        self.ledger.delivered(event_id)
        if (paid_at := self._paid_at.pop(event_id, None)) is not None:
            self._took.append((self._clock(), self._clock() - paid_at))

    def dead_lettered(self, letter: Message) -> None:
        """A record was read from order_logging's dead-letter topic."""
        headers = dict(letter.headers() or [])
        place = f"{letter.partition()}/{letter.offset()}"
        event_id = _text(headers.get("event-id")) or f"dead letter {place} without event-id"
        self.ledger.dead_lettered(event_id, _text(headers.get("dlq-reason")) or "no reason given")
        self._paid_at.pop(event_id, None)

    def finish(self) -> None:
        """Let ``watch_table`` and ``read_dead_letters`` take a last look and return."""
        self._closing.set()

    async def watch_table(self, table: ShopDatabase) -> None:
        """Count the events that wait in the shop's database, until ``finish``.

        The last look takes in every order and every waiting row.
        """
        while not self._closing.is_set():
            await self._look(table, SAVED_AFTER_SECONDS)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), TABLE_EVERY_SECONDS)
        await self._look(table, 0.0, orders=True)

    async def _look(self, table: ShopDatabase, seconds: float, *, orders: bool = False) -> None:
        try:
            for event_id in await table.orders() if orders else ():
                self.ledger.paid(event_id)
            event_ids, self.pending = await table.waiting(seconds)
        except DatabaseUnavailable as error:
            logger.warning("The rows in the shop's database were not counted: %s", error)
        else:
            self.ledger.saved_for_replay(event_ids)

    async def ask_worker(self, url: str) -> NoReturn:
        """Ask the worker over HTTP how it is, every second, until this is cancelled."""
        async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(2)) as session:
            while True:
                try:
                    async with session.get("/health/ready") as response:
                        self.answer = READY if response.ok else "not ready"
                    for name in self.options.consumers:
                        async with session.get("/stats", params={"consumer": name}) as response:
                            if response.ok:  # else it has no figures yet
                                self.stats[name] = await response.json()
                    for one in self.consumers:
                        if one.name in self.stats:
                            one.tell(self.stats[one.name], ORDER_TOPIC)
                except (aiohttp.ClientError, OSError):
                    self.answer = "does not answer"
                    self.stats.clear()
                await asyncio.sleep(WORKER_EVERY_SECONDS)

    async def read_dead_letters(self, settings: Settings) -> None:
        """Read order_logging's dead-letter topic, from the first record on, until ``finish``.

        It joins no group and commits nothing: the worker does not notice it.
        """
        consumer = Consumer(
            client_config(settings)
            | {
                # A consumer must name a group even if it never joins it.
                "group.id": f"demo-ledger-{uuid.uuid4()}",
                "enable.auto.commit": False,
                "log_level": 0,
                # After an outage it is there again at once.
                "reconnect.backoff.max.ms": 500,
            }
        )

        async def take() -> None:
            for record in await asyncio.to_thread(consumer.consume, 500, 0.2):
                if record.error() is None:
                    self.dead_lettered(record)

        try:
            topic = settings.dlq_topic
            found = (await asyncio.to_thread(consumer.list_topics, topic, 10)).topics[topic]
            partitions = [TopicPartition(topic, one, OFFSET_BEGINNING) for one in found.partitions]
            consumer.assign(partitions)
            while not self._closing.is_set():
                await take()
            ends = [
                (await asyncio.to_thread(consumer.get_watermark_offsets, one, 5))[1]
                for one in partitions
            ]
            async with asyncio.timeout(_LAST_LOOK_SECONDS):
                # The position is negative before the first record of a partition.
                while any(
                    max(position.offset, 0) < end
                    for position, end in zip(consumer.position(partitions), ends, strict=True)
                ):
                    await take()
        except (KafkaException, TimeoutError):
            # The ledger will miss records and say so.
            logger.exception("Reading dead letters failed")
        finally:
            consumer.close()


def _text(value: str | bytes | None) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""
