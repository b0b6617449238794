"""One record of the dead-letter topic, whoever wrote it."""

from __future__ import annotations

import re
import struct
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from order_relay.delivery.dead_letters import CONSUMER_HEADER
from order_relay.model.byte_text import to_text
from order_relay.model.events import without_lone_surrogates
from order_relay.model.headers import EVENT_ID_HEADER

Headers = tuple[tuple[str, bytes | None], ...]

REDRIVES_HEADER = "dlq-redrives"
# What a dead letter has beside its record: Spring's headers and ours.
_OF_THE_LETTER = ("kafka_dlt-", "dlq-")
_NUMBER = re.compile(rb"\d{1,9}", re.ASCII)
# Spring Kafka writes these big-endian.
_INT32 = ("kafka_dlt-original-partition",)
_INT64 = ("kafka_dlt-original-offset", "kafka_dlt-original-timestamp")


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter as it stands in the topic.

    Nothing in it can be relied on: other programs write there, too. What is missing or makes no
    sense is ``None``.

    Attributes:
        topic: The dead-letter topic.
        partition: Its partition there.
        offset: Its offset there.
        key: Key of the record, byte for byte.
        value: Value of the record, byte for byte.
        headers: All headers in their order.
        timestamp_ms: When Kafka got it, since the epoch.
        headers_unreadable: Whether ``headers`` is empty because one has a name that is not UTF-8.
    """

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    timestamp_ms: int = 0
    headers_unreadable: bool = False

    def __str__(self) -> str:
        return f"{self.partition}:{self.offset}"

    def header(self, name: str) -> bytes | None:
        """Return the last header of that name: Kafka's rule for duplicates."""
        for key, value in reversed(self.headers):
            if key == name:
                return value
        return None

    def text(self, name: str) -> str | None:
        """Return a header as text, see ``header_value``."""
        value = header_value(name, self.header(name))
        return None if value is None else str(value)

    def number(self, name: str) -> int | None:
        """Return one of Spring's numbers."""
        value = header_value(name, self.header(name))
        return value if isinstance(value, int) else None

    @property
    def reason(self) -> str | None:
        """The code of ``dlq-reason``."""
        return self.text("dlq-reason")

    @property
    def failed_at(self) -> datetime | None:
        """When it was given up, else when Kafka got it."""
        # A time that Python's calendar does not have is an error of any of these kinds.
        with suppress(ValueError, OverflowError, OSError):
            moment = datetime.fromisoformat(self.text("dlq-failed-at") or "")
            return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        with suppress(ValueError, OverflowError, OSError):
            if self.timestamp_ms > 0:
                return datetime.fromtimestamp(self.timestamp_ms / 1000, UTC)
        return None

    @property
    def redrives(self) -> int:
        """How often the record was sent again from here."""
        value = self.header(REDRIVES_HEADER) or b""
        return int(value) if _NUMBER.fullmatch(value) else 0

    @property
    def order_id(self) -> int | str | None:
        """The order's id, if the value tells one."""
        try:
            found = msgspec.json.decode(without_lone_surrogates(self.value or b""))
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None
        order_id = found.get("orderId") if isinstance(found, dict) else None
        return order_id if isinstance(order_id, int | str) else None

    @property
    def event_id(self) -> bytes:
        """What the ``Idempotency-Key`` is made of, when the record is sent again as well.

        Its own ``event-id``, else the place where the record stood first; of a letter that does
        not tell that, the place where the letter stands.
        """
        given = self.header(EVENT_ID_HEADER)
        if given:
            return given
        topic = self.text("kafka_dlt-original-topic")
        partition = self.number("kafka_dlt-original-partition")
        offset = self.number("kafka_dlt-original-offset")
        if topic is None or partition is None or offset is None:
            topic, partition, offset = self.topic, self.partition, self.offset
        return f"{topic}-{partition}-{offset}".encode()

    @property
    def home_partition(self) -> int:
        """The number of the partition where the record stood."""
        number = self.number("kafka_dlt-original-partition")
        return self.partition if number is None or number < 0 else number

    def redriven_headers(self, consumer: str) -> list[tuple[str, bytes | None]]:
        """Return the headers with which the record is sent again, for the consumer of the letter.

        The record's own, its event id, whom it is for (others that read the topic had it), and how
        often it was sent again, this time included.
        """
        own = [
            (name, value)
            for name, value in self.headers
            if not name.startswith(_OF_THE_LETTER) and name != EVENT_ID_HEADER
        ]
        return [
            *own,
            (EVENT_ID_HEADER, self.event_id),
            (CONSUMER_HEADER, consumer.encode()),
            (REDRIVES_HEADER, str(self.redrives + 1).encode()),
        ]


def header_value(name: str, value: bytes | None) -> str | int | None:
    r"""Return a header's value as a person reads it.

    Spring's numbers as such, text as it is, and whatever is neither in hexadecimal digits
    after ``\x``.
    """
    if value is not None and name in _INT32 and len(value) == 4:
        return int(struct.unpack(">i", value)[0])
    if value is not None and name in _INT64 and len(value) == 8:
        return int(struct.unpack(">q", value)[0])
    return to_text(value)
