"""Publishing many events: one batch after another, and those of one key in order."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum

from order_relay.cli.publish.line_reader import Line
from order_relay.errors import InvalidEvent, PublishFailed, RecordTooLarge
from order_relay.kafka.producer import MAX_MESSAGE_BYTES
from order_relay.model.events import decode_order_paid
from order_relay.publishing.publisher import Published, Publisher, Saved

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
        text = f"the line is longer than {MAX_MESSAGE_BYTES:,} bytes"
        raise InvalidEvent("invalid_event", text)
    return str(decode_order_paid(line.value).orderId)


@dataclass(eq=False)
class BulkPublisher:
    """Publishes lines through ``Publisher``; each ends as one of ``LineStatus``.

    Once an event of a key is saved, later ones of this key are saved as well, to keep their order.
    Once one has failed, later ones of its key fail as well.

    Attributes:
        publisher: None: each line is only checked, and gets the result that it has while Kafka
            works.
        new_ids: Whether every line gets a new event id. Otherwise the same line always gets the
            same one, so that a file can safely be published again.
        stopped_at: The first line that neither Kafka nor the database took; no batch is begun
            after it. None: there is none.
    """

    publisher: Publisher | None
    on_result: Callable[[LineResult], None]
    _: KW_ONLY
    new_ids: bool = False
    stopped_at: int | None = None
    _saved_keys: set[str] = field(default_factory=set)
    _failed_keys: set[str] = field(default_factory=set)
    _closing: asyncio.Task[None] | None = None

    async def publish(self, batches: AsyncIterator[list[Line]]) -> None:
        """Publish one batch after another, and return when every line begun has ended.

        Raises:
            OSError: Reading failed; the lines begun have ended.
        """
        async for batch in batches:
            by_key: dict[str, list[Line]] = {}
            for line in batch:
                try:
                    by_key.setdefault(order_of(line), []).append(line)
                except InvalidEvent as error:
                    result = LineResult(line.number, LineStatus.REFUSED, reason=str(error))
                    self.on_result(result)
            async with asyncio.TaskGroup() as publishing:
                for key, lines in by_key.items():
                    publishing.create_task(self._publish_in_turn(key, lines))
            if self.stopped_at is not None:
                return

    def close_soon(self) -> None:
        """Save what Kafka does not answer within ``STOP_GRACE_SECONDS``; may be called twice."""
        if self.publisher is not None and self._closing is None:
            self._closing = asyncio.create_task(self.publisher.close(STOP_GRACE_SECONDS))

    async def _publish_in_turn(self, key: str, lines: list[Line]) -> None:
        for line in lines:
            result = await self._publish(line, key)
            if result.result is LineStatus.SAVED:
                self._saved_keys.add(key)
            elif result.result is LineStatus.FAILED:
                self._failed_keys.add(key)
                self.stopped_at = self.stopped_at or line.number
            self.on_result(result)

    async def _publish(self, line: Line, key: str) -> LineResult:
        number = line.number
        same_id = str(uuid.uuid5(_NAMESPACE, line.value.hex()))
        if self.publisher is None:
            return LineResult(number, LineStatus.PUBLISHED, None if self.new_ids else same_id)
        event_id = str(uuid.uuid4()) if self.new_ids else same_id
        if key in self._failed_keys:
            return LineResult(number, LineStatus.FAILED, event_id, reason=BEHIND_FAILED)
        behind = BEHIND if key in self._saved_keys else None
        try:
            outcome = await self.publisher.publish(
                line.value, event_id=event_id, save_because=behind
            )
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
