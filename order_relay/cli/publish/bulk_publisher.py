"""Publishing many events: a bounded number at a time, and those of one key in order."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from enum import StrEnum

from order_relay.cli.publish.line_reader import Line
from order_relay.errors import InvalidEvent, PublishFailed, RecordTooLarge
from order_relay.model.events import decode_order_paid
from order_relay.publishing.publisher import Published, Publisher, Saved

MAX_IN_FLIGHT = 500
MAX_BYTES_IN_FLIGHT = 64 * 1024 * 1024
# After Ctrl-C or SIGTERM: what Kafka has not answered by then is saved.
STOP_GRACE_SECONDS = 5.0
BEHIND = "an earlier event of its key is in the fallback table"
BEHIND_FAILED = "an earlier event of its key is neither in Kafka nor in the database"

_NAMESPACE = uuid.UUID("7c0c3b0a-5f5e-4f3d-8a37-3d2e0cbb7a11")


class LineStatus(StrEnum):
    """The result of a line, in one word."""

    PUBLISHED = "published"
    SAVED = "saved"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class LineResult:
    """The result of a line.

    Attributes:
        number: The line's number, from 1.
        result: The result in one word.
        event_id: The event's id; None if the line is refused.
        position: The record in Kafka, if it is published.
        row_id: The row in the fallback table, if it is saved.
        reason: Why it is not published.
    """

    number: int
    result: LineStatus
    event_id: str | None = None
    position: Published | None = None
    row_id: int | None = None
    reason: str = ""


def order_of(line: Line) -> str:
    """Check a line, and return the id of the paid order as text.

    Raises:
        InvalidEvent: It is too long, or not an ORDER_PAID event.
    """
    if line.too_long:
        raise InvalidEvent("invalid_event", "the line is too long")
    return str(decode_order_paid(line.value).orderId)


class BulkPublisher:
    """Publishes lines through ``Publisher``; each ends as one of ``LineStatus``.

    Once an event of a key is saved, later ones of this key are saved as well, to keep their order.
    Once one has failed, later ones of its key fail as well.

    Attributes:
        stopped_at: The first line that neither Kafka nor the database took; no line is begun
            after it. None: there is none.
    """

    def __init__(
        self,
        publisher: Publisher | None,
        on_result: Callable[[LineResult], None],
        *,
        new_ids: bool = False,
        max_in_flight: int = MAX_IN_FLIGHT,
        max_bytes: int = MAX_BYTES_IN_FLIGHT,
    ) -> None:
        """Prepare.

        Args:
            publisher: Publishes events. None: each line is only checked, and gets the result that
                it has while Kafka works.
            on_result: Called with the result of every line.
            new_ids: Whether every line gets a new event id. Otherwise the same line always gets
                the same one, so that a file can safely be published again.
            max_in_flight: Limit of lines under way.
            max_bytes: Limit of their size; a larger line goes alone.
        """
        self._publisher = publisher
        self._on_result = on_result
        self._new_ids = new_ids
        self._max_in_flight = max_in_flight
        self._max_bytes = max_bytes
        self._last_of_key: dict[str, asyncio.Task[None]] = {}
        self._saved_keys: set[str] = set()
        self._failed_keys: set[str] = set()
        self._running: set[asyncio.Task[None]] = set()
        self._bytes = 0
        self._ended = asyncio.Event()
        self._closing: asyncio.Task[None] | None = None
        self.stopped_at: int | None = None

    async def publish(self, lines: AsyncIterator[Line]) -> None:
        """Publish the lines, and return when every line begun has ended.

        Raises:
            OSError: Reading failed; the lines begun have ended.
        """
        try:
            async for line in lines:
                await self._wait_for_room(len(line.value))
                if self.stopped_at is not None:
                    return
                self._begin(line)
        finally:
            while self._running:
                await asyncio.wait(self._running)

    def close_soon(self) -> None:
        """Save what Kafka does not answer within ``STOP_GRACE_SECONDS``; may be called twice."""
        if self._publisher is not None and self._closing is None:
            self._closing = asyncio.create_task(self._publisher.close(STOP_GRACE_SECONDS))

    async def _wait_for_room(self, size: int) -> None:
        while self._running and (
            len(self._running) >= self._max_in_flight or self._bytes + size > self._max_bytes
        ):
            self._ended.clear()
            await self._ended.wait()

    def _begin(self, line: Line) -> None:
        try:
            key = order_of(line)
        except InvalidEvent as error:
            self._on_result(LineResult(line.number, LineStatus.REFUSED, reason=str(error)))
            return
        if self._publisher is None:
            event_id = None if self._new_ids else str(_event_id(line.value))
            self._on_result(LineResult(line.number, LineStatus.PUBLISHED, event_id))
            return
        publishing = self._publish_in_turn(self._publisher, line, key, self._last_of_key.get(key))
        task = asyncio.create_task(publishing)
        self._last_of_key[key] = task
        self._running.add(task)
        self._bytes += len(line.value)
        task.add_done_callback(lambda ended: self._end(ended, key, len(line.value)))

    def _end(self, task: asyncio.Task[None], key: str, size: int) -> None:
        self._running.discard(task)
        self._bytes -= size
        self._ended.set()
        if self._last_of_key.get(key) is task:
            del self._last_of_key[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error

    async def _publish_in_turn(
        self, publisher: Publisher, line: Line, key: str, before: asyncio.Task[None] | None
    ) -> None:
        if before is not None:
            await asyncio.wait([before])
        result = await self._publish(publisher, line, key)
        if result.result is LineStatus.SAVED:
            self._saved_keys.add(key)
        elif result.result is LineStatus.FAILED:
            self._failed_keys.add(key)
            self.stopped_at = self.stopped_at or line.number
        self._on_result(result)

    async def _publish(self, publisher: Publisher, line: Line, key: str) -> LineResult:
        number = line.number
        event_id = str(uuid.uuid4() if self._new_ids else _event_id(line.value))
        if key in self._failed_keys:
            return LineResult(number, LineStatus.FAILED, event_id, reason=BEHIND_FAILED)
        behind = BEHIND if key in self._saved_keys else None
        try:
            outcome = await publisher.publish(line.value, event_id=event_id, save_because=behind)
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


def _event_id(value: bytes) -> uuid.UUID:
    return uuid.uuid5(_NAMESPACE, value.hex())
