"""Publishing many events: bounded in flight, those of one key one after another."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from enum import StrEnum

from order_relay.cli.publish.line_reader import Line
from order_relay.errors import (
    InvalidEvent,
    KafkaUnavailable,
    PublishFailed,
    PublishRefused,
    RecordTooLarge,
    RelayError,
)
from order_relay.fallback.replay import ReplayProducer
from order_relay.fallback.store import FallbackStore
from order_relay.kafka.producer import Acknowledged
from order_relay.model.events import decode_order_paid
from order_relay.model.headers import Headers
from order_relay.publishing.publisher import Published, Publisher, Saved

MAX_IN_FLIGHT = 500
MAX_BYTES_IN_FLIGHT = 64 * 1024 * 1024
PING_INTERVAL_SECONDS = 5.0
# So many questions without an answer, one after another, make an outage.
PINGS_UNTIL_OUTAGE = 2

_NAMESPACE = uuid.UUID("7c0c3b0a-5f5e-4f3d-8a37-3d2e0cbb7a11")


class LineStatus(StrEnum):
    """How a line ended."""

    PUBLISHED = "published"
    SAVED = "saved"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class LineResult:
    """What became of a line.

    Attributes:
        place: Where Kafka has it, if it is published.
        row_id: Where the fallback table has it, if it is saved.
        reason: Why it is not published.
    """

    number: int
    result: LineStatus
    event_id: str | None = None
    position: Published | None = None
    row_id: int | None = None
    reason: str = ""


def order_of(line: Line) -> str:
    """Check a line, and return the id of the order that was paid, as text.

    Raises:
        InvalidEvent: It is too long, or no ORDER_PAID event.
    """
    if line.too_long:
        raise InvalidEvent("invalid_event", "the line is too long")
    return str(decode_order_paid(line.value).orderId)


async def check_lines(
    lines: AsyncIterator[Line], on_result: Callable[[LineResult], None], *, new_ids: bool = False
) -> None:
    """Tell of every line what publishing it would come to, if Kafka takes it.

    Raises:
        OSError: The lines cannot be read on.
    """
    async for line in lines:
        try:
            order_of(line)
        except InvalidEvent as error:
            on_result(LineResult(line.number, LineStatus.REFUSED, reason=str(error)))
            continue
        event_id = None if new_ids else str(_event_id(line.value))
        on_result(LineResult(line.number, LineStatus.PUBLISHED, event_id))


class BulkPublisher:
    """Publishes lines through ``Publisher``, so that each ends as one of ``LineStatus``.

    While Kafka cannot be reached, events are saved without waiting for it; and so are those
    whose key has an event in the table already, which they must not overtake.
    """

    def __init__(
        self,
        producer: ReplayProducer,
        store: FallbackStore,
        topic: str,
        on_result: Callable[[LineResult], None],
        *,
        max_retry: int,
        new_ids: bool = False,
        max_in_flight: int = MAX_IN_FLIGHT,
        max_bytes: int = MAX_BYTES_IN_FLIGHT,
        ping_interval_seconds: float = PING_INTERVAL_SECONDS,
    ) -> None:
        """Prepare; producer and store are the caller's.

        Args:
            producer: Where events go.
            store: Where events go that Kafka does not take.
            topic: Their topic.
            on_result: Is told of every line, as it ends.
            max_retry: Refusals after which a saved row is FAILED.
            new_ids: A new event id for every line; else the same line always has the same one,
                so that a file can be published again without harm.
            max_in_flight: Lines under way at a time.
            max_bytes: Their size at a time; a line may be larger, and is then alone.
            ping_interval_seconds: Between questions whether Kafka answers.
        """
        self._producer = producer
        self._topic = topic
        self._on_result = on_result
        self._new_ids = new_ids
        self._room = _Room(max_in_flight, max_bytes)
        self._ping_interval_seconds = ping_interval_seconds
        self._direct = Publisher(producer, store, topic, max_retry=max_retry)
        self._holding = Publisher(_NotAsked(self._why_not_asked), store, topic, max_retry=max_retry)
        self._outage: KafkaUnavailable | None = None
        self._keys: dict[str, asyncio.Task[None]] = {}
        self._saved_keys: set[str] = set()
        self._running: set[asyncio.Task[None]] = set()
        self.stopped_at: int | None = None
        """The line whose event nobody took: after it nothing more was begun."""

    @property
    def outage(self) -> KafkaUnavailable | None:
        """Why Kafka is not asked at present."""
        return self._outage

    async def look_at_kafka(self) -> None:
        """Ask once whether Kafka can be reached; what follows is done accordingly."""
        try:
            await self._producer.ping()
        except KafkaUnavailable as error:
            self._outage = error

    async def publish(self, lines: AsyncIterator[Line]) -> None:
        """Publish the lines, and return when every line begun has ended.

        Raises:
            OSError: The lines cannot be read on; those begun have ended.
        """
        watch = asyncio.create_task(self._watch_kafka())
        try:
            async for line in lines:
                await self._room.take(len(line.value))
                if self.stopped_at is not None:
                    return
                self._begin(line)
        finally:
            while self._running:
                await asyncio.wait(self._running)
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    async def close(self, grace_seconds: float) -> None:
        """Save what Kafka does not answer within the grace."""
        await self._direct.close(grace_seconds)

    # --- one line -------------------------------------------------------------------------------

    def _begin(self, line: Line) -> None:
        try:
            key = order_of(line)
        except InvalidEvent as error:
            self._end(line, LineResult(line.number, LineStatus.REFUSED, reason=str(error)))
            return
        task = asyncio.create_task(self._publish_in_turn(line, key, self._keys.get(key)))
        self._keys[key] = task
        self._running.add(task)
        task.add_done_callback(lambda ended: self._forget(ended, key))

    def _forget(self, task: asyncio.Task[None], key: str) -> None:
        self._running.discard(task)
        if self._keys.get(key) is task:
            del self._keys[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error

    async def _publish_in_turn(
        self, line: Line, key: str, before: asyncio.Task[None] | None
    ) -> None:
        if before is not None:
            await asyncio.wait([before])
        result = await self._publish(line, key)
        if result.result is LineStatus.SAVED:
            self._saved_keys.add(key)
        elif result.result is LineStatus.FAILED and self.stopped_at is None:
            self.stopped_at = line.number
        self._end(line, result)

    async def _publish(self, line: Line, key: str) -> LineResult:
        number = line.number
        event_id = str(uuid.uuid4() if self._new_ids else _event_id(line.value))
        held = self._outage is not None or key in self._saved_keys
        publisher = self._holding if held else self._direct
        try:
            outcome = await publisher.publish(line.value, event_id=event_id)
        except (InvalidEvent, RecordTooLarge) as error:
            return LineResult(number, LineStatus.REFUSED, event_id, reason=str(error))
        except PublishFailed as error:
            reason = f"{error.kafka_error}; {error.database_error}"
            return LineResult(number, LineStatus.FAILED, event_id, reason=reason)
        match outcome:
            case Published():
                return LineResult(number, LineStatus.PUBLISHED, event_id, position=outcome)
            case Saved(row_id, _, reason):
                return LineResult(number, LineStatus.SAVED, event_id, row_id=row_id, reason=reason)

    def _end(self, line: Line, result: LineResult) -> None:
        self._room.give(len(line.value))
        self._on_result(result)

    # --- outages --------------------------------------------------------------------------------

    def _why_not_asked(self) -> RelayError:
        return self._outage or PublishRefused(
            self._topic, "an earlier event of its key is in the fallback table"
        )

    async def _watch_kafka(self) -> None:
        unanswered = PINGS_UNTIL_OUTAGE if self._outage is not None else 0
        while True:
            await asyncio.sleep(self._ping_interval_seconds)
            try:
                await self._producer.ping()
            except KafkaUnavailable as error:
                unanswered += 1
                if unanswered >= PINGS_UNTIL_OUTAGE:
                    self._outage = error
            else:
                unanswered = 0
                self._outage = None


class _NotAsked:
    """A producer that refuses everything: what is published through it is saved."""

    def __init__(self, why: Callable[[], RelayError]) -> None:
        self._why = why

    async def send(
        self,
        topic: str,
        *,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> Acknowledged:
        """Refuse."""
        raise self._why()


class _Room:
    """Bounds what is under way, by number and by size. One taker, any givers."""

    def __init__(self, max_count: int, max_bytes: int) -> None:
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._count = 0
        self._bytes = 0
        self._freed = asyncio.Event()

    async def take(self, size: int) -> None:
        while self._count >= self._max_count or (
            self._count and self._bytes + size > self._max_bytes
        ):
            self._freed.clear()
            await self._freed.wait()
        self._count += 1
        self._bytes += size

    def give(self, size: int) -> None:
        self._count -= 1
        self._bytes -= size
        self._freed.set()


def _event_id(value: bytes) -> uuid.UUID:
    return uuid.uuid5(_NAMESPACE, value.hex())
