"""A record of the dead-letter topic, written by us, by Spring or by any other program."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from order_relay.delivery.dead_letters import CONSUMER_HEADER
from order_relay.model.byte_text import to_text
from order_relay.model.events import without_lone_surrogates
from order_relay.model.headers import EVENT_ID_HEADER, Header, last_value

REDRIVES_HEADER = "dlq-redrives"
# Headers that describe the failure; all others are the record's own.
_FAILURE_PREFIXES = ("kafka_dlt-", "dlq-")
_POSITION = re.compile(r"(\d{1,9})[:/](\d{1,18})", re.ASCII)
_NUMBER = re.compile(rb"\d{1,9}", re.ASCII)
# Spring Kafka writes these big-endian, in so many bytes.
_BYTES = {
    "kafka_dlt-original-partition": 4,
    "kafka_dlt-original-offset": 8,
    "kafka_dlt-original-timestamp": 8,
}


class LetterPosition(NamedTuple):
    """Partition and offset of a letter in the dead-letter topic."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}:{self.offset}"

    @classmethod
    def parse(cls, text: str) -> LetterPosition:
        """Return the position that a person names; raises ``ValueError``."""
        if (found := _POSITION.fullmatch(text)) is None:
            raise ValueError(f"{text[:40]!r} must be PARTITION:OFFSET, such as 0:17")
        return cls(int(found[1]), int(found[2]))


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter as it is in the topic.

    Other programs write there, too, so any part may be missing or wrong; such a part reads as
    ``None``.

    Attributes:
        topic: The dead-letter topic.
        partition: Its partition there.
        offset: Its offset there.
        key: Key of the record, byte for byte.
        value: Value of the record, byte for byte.
        headers: All headers in their order.
        timestamp_ms: When it was written, milliseconds since the epoch.
        headers_unreadable: A header's name is not UTF-8; ``headers`` is empty then.
    """

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...] = ()
    timestamp_ms: int = 0
    headers_unreadable: bool = False

    @property
    def position(self) -> LetterPosition:
        """Where it is in the topic."""
        return LetterPosition(self.partition, self.offset)

    def header(self, name: str) -> bytes | None:
        """Return a header; see ``last_value``."""
        return last_value(self.headers, name)

    def text(self, name: str) -> str | None:
        """Return a header as text, see ``header_value``."""
        value = header_value(name, self.header(name))
        return None if value is None else str(value)

    def number(self, name: str) -> int | None:
        """Return the value of a header that Spring writes as a number."""
        value = header_value(name, self.header(name))
        return value if isinstance(value, int) else None

    @property
    def reason(self) -> str | None:
        """The code of ``dlq-reason``."""
        return self.text("dlq-reason")

    @property
    def failed_at(self) -> datetime | None:
        """When the record was given up, else when the letter was written."""
        # Python raises any of these for a time outside its calendar.
        with suppress(ValueError, OverflowError, OSError):
            return in_utc(datetime.fromisoformat(self.text("dlq-failed-at") or ""))
        with suppress(ValueError, OverflowError, OSError):
            if self.timestamp_ms > 0:
                return datetime.fromtimestamp(self.timestamp_ms / 1000, UTC)
        return None

    @property
    def redrives(self) -> int:
        """How often the record has been redriven."""
        value = self.header(REDRIVES_HEADER) or b""
        return int(value) if _NUMBER.fullmatch(value) else 0

    @property
    def order_id(self) -> int | str | None:
        """The order's id, if the value has one."""
        try:
            found = msgspec.json.decode(without_lone_surrogates(self.value or b""))
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None
        order_id = found.get("orderId") if isinstance(found, dict) else None
        return order_id if isinstance(order_id, int | str) else None

    @property
    def source(self) -> tuple[str, int, int] | None:
        """Topic, partition and offset of the record; None: the letter does not have all three."""
        topic = self.text("kafka_dlt-original-topic")
        partition = self.number("kafka_dlt-original-partition")
        offset = self.number("kafka_dlt-original-offset")
        if topic is None or partition is None or offset is None:
            return None
        return topic, partition, offset

    @property
    def event_id(self) -> bytes:
        """The event's id, which is its ``Idempotency-Key`` again after a redrive.

        The ``event-id`` header, else the original position of the record, else (a letter without
        the original position) the position of the letter.
        """
        given = self.header(EVENT_ID_HEADER)
        if given:
            return given
        topic, partition, offset = self.source or (self.topic, self.partition, self.offset)
        return f"{topic}-{partition}-{offset}".encode()

    @property
    def home_partition(self) -> int:
        """The partition that the record came from."""
        number = self.number("kafka_dlt-original-partition")
        return self.partition if number is None or number < 0 else number

    def redriven_headers(self, consumer: str) -> list[Header]:
        """Return the headers for redriving the record.

        They are the record's own, its event id, the consumer that gave it up (others have had the
        record and skip it), and the number of redrives including this one.
        """
        own = [
            (name, value)
            for name, value in self.headers
            if not name.startswith(_FAILURE_PREFIXES) and name != EVENT_ID_HEADER
        ]
        return [
            *own,
            (EVENT_ID_HEADER, self.event_id),
            (CONSUMER_HEADER, consumer.encode()),
            (REDRIVES_HEADER, str(self.redrives + 1).encode()),
        ]


def header_value(name: str, value: bytes | None) -> str | int | None:
    r"""Return a header's value for people: a number of Spring's, text, or ``\x`` and hex digits."""
    if value is not None and len(value) == _BYTES.get(name):
        return int.from_bytes(value, "big", signed=True)
    return to_text(value)


def in_utc(moment: datetime) -> datetime:
    """Return a time in UTC; one without a zone is taken as UTC."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
