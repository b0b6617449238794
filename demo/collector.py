"""Collects what each party saw: the shop, its database, the loggers, Kafka and the worker."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from enum import StrEnum
from typing import Any, NoReturn

import aiohttp
from confluent_kafka import Message

from demo.command_line import Options
from demo.ledger import ConsumerLedger, Ledger
from demo.logger import SampleLogger
from demo.shop import Order, ShopDatabase
from order_relay.errors import DatabaseUnavailable, KafkaUnavailable, TopicUnusable
from order_relay.kafka.topic_reader import TopicReader, headers_of
from order_relay.model.headers import EVENT_ID_HEADER
from order_relay.settings import Settings

logger = logging.getLogger(__name__)

# Every event is a row for a moment; one is saved when publishing it at once has failed.
SAVED_AFTER_SECONDS = 1.0
LOOK_EVERY_SECONDS = 0.5
WORKER_EVERY_SECONDS = 1.0
# Enough for exact percentiles of a counted run; older ones make room.
KEPT_TIMES = 10_000
READY = "ready"
# The longest start of the worker.
START_SECONDS = 60.0


class Phase(StrEnum):
    """How far the demo is."""

    STARTING = "starting"
    RUNNING = "running"
    FINISHING = "waiting for the last orders"
    STOPPING = "stopping, the worker finishes what it has begun"


class Collector:
    """Writes each fact into the ledgers, and holds what is shown."""

    def __init__(
        self, options: Options, logger: SampleLogger, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._began_at = clock()
        self._moved_at = self._began_at + START_SECONDS
        self._closing = asyncio.Event()
        self._paid_at: dict[str, float] = {}  # of open orders
        self._took: deque[float] = deque(maxlen=KEPT_TIMES)
        self.options = options
        self.logger = logger
        logger.on_accepted = self.logged
        self.phase = Phase.STARTING
        self.ledger = Ledger()
        self.consumers = [ConsumerLedger(name, self.ledger) for name in options.consumers[1:]]
        self.pending = 0  # saved rows that replay will publish; failed ones wait for a person
        self.answer = ""  # how the worker answers when it is asked whether it is ready
        # What it says at /stats, by consumer; empty while it does not answer.
        self.stats: dict[str, Mapping[str, Any]] = {}
        self.kafka_is_down = False
        self.kafka_outages = 0
        # Names and values of what to read on: log, console, commands.
        self.places: Mapping[str, str] = {}

    @property
    def elapsed_seconds(self) -> float:
        """Since all was started, and then since the shop opened."""
        return self._clock() - self._began_at

    def open_shop(self) -> None:
        """The worker is ready; what is shown runs from here."""
        self.phase, self._began_at = Phase.RUNNING, self._clock()
        self._moved()

    @property
    def worker(self) -> str:
        """How the worker is, in a word or two."""
        words = {Phase.STARTING: "starting", Phase.STOPPING: "finishing"}
        return words.get(self.phase, self.answer)

    def percentiles(self) -> dict[str, float]:
        """Return p50, p95 and p99 (nearest rank) of the last delivery times, or nothing."""
        times = sorted(self._took)
        shares = (50, 95, 99) if times else ()
        return {f"p{share}": times[math.ceil(share * len(times) / 100) - 1] for share in shares}

    @property
    def open(self) -> int:
        """Orders that the slowest of the consumers has not accounted for."""
        return max(self.ledger.balance().open, *(one.open for one in self.consumers), 0)

    def is_stalled(self) -> bool:
        """Whether nothing has moved for longer than the user of a counted run wants to wait.

        The worker's start has a minute more. Records in the worker are moving while the breaker is
        closed: it retries a hopeless one for long before it gives it up.
        """
        for one in self.stats.values():
            if one["held"] and one["breaker"]["state"] == "closed":
                self._moved()
        quiet_seconds = self._clock() - self._moved_at
        return self.options.orders is not None and quiet_seconds > self.options.give_up_after

    def _moved(self) -> None:
        self._moved_at = self._clock()

    def paid(self, order: Order) -> None:
        """An order was committed."""
        self._moved()
        self.ledger.paid(order.event_id, broken=order.broken)
        self._paid_at[order.event_id] = self._clock()

    def logged(self, event_id: str) -> None:
        """The logger answered 2xx."""
        self._moved()
        self.ledger.delivered(event_id)
        if (paid_at := self._paid_at.pop(event_id, None)) is not None:
            self._took.append(self._clock() - paid_at)

    def dead_lettered(self, letter: Message) -> None:
        """A record was read from order_logging's dead-letter topic."""
        self._moved()
        headers = dict(headers_of(letter) or ())
        unnamed = f"dead letter {letter.partition()}/{letter.offset()} without event-id"
        event_id = (headers.get(EVENT_ID_HEADER) or b"").decode(errors="replace") or unnamed
        reason = headers.get("dlq-reason") or b"no reason given"
        self.ledger.dead_lettered(event_id, reason.decode(errors="replace"))
        self._paid_at.pop(event_id, None)

    def finish(self) -> None:
        """Let ``watch_table`` and ``read_dead_letters`` take a last look and return."""
        self._closing.set()

    async def _until_finished(self, look: Callable[[], Awaitable[None]]) -> None:
        while not self._closing.is_set():
            await look()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), LOOK_EVERY_SECONDS)
        await look()

    async def watch_table(self, table: ShopDatabase) -> None:
        """Count the events that wait in the shop's database, until ``finish``.

        The last look takes in every order and every waiting row.
        """

        async def look() -> None:
            last = self._closing.is_set()
            try:
                for event_id in await table.orders() if last else ():
                    self.ledger.paid(event_id)
                event_ids, self.pending = await table.waiting(0.0 if last else SAVED_AFTER_SECONDS)
            except DatabaseUnavailable as error:
                logger.warning("The rows in the shop's database were not counted: %s", error)
            else:
                self.ledger.saved_for_replay(event_ids)

        await self._until_finished(look)

    async def read_dead_letters(self, settings: Settings) -> None:
        """Read order_logging's dead-letter topic, from the first record on, until ``finish``.

        It joins no group and commits nothing: the worker does not notice it.
        """
        offsets: Counter[int] = Counter()  # where to read on, by partition

        async def look() -> None:
            try:
                for partition, extent in (await reader.extents()).items():
                    async for letter in reader.messages(partition, offsets[partition], extent.end):
                        self.dead_lettered(letter)
                        offsets[partition] = (letter.offset() or 0) + 1
            except (KafkaUnavailable, TopicUnusable) as error:
                # If this was the last look, the ledger misses records and says so.
                logger.warning("Dead letters were not read: %s", error)

        async with TopicReader(settings, settings.dlq_topic) as reader:
            await self._until_finished(look)

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
                        if one.name in self.stats and one.tell(self.stats[one.name]):
                            self._moved()
                except (aiohttp.ClientError, OSError):
                    self.answer = "does not answer"
                    if self.phase is not Phase.STOPPING:
                        self.stats.clear()
                await asyncio.sleep(WORKER_EVERY_SECONDS)
