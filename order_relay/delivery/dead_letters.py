"""Dead letters: records that could not be delivered, and the headers that say why.

A dead letter is the record as it came (key, value, its own headers) with two sets of headers more.
One is ours. The other is Spring Kafka's ``kafka_dlt-*`` in Spring's byte formats
(``DeadLetterPublishingRecoverer`` and ``KafkaHeaders``: numbers big-endian, text UTF-8), so that
existing tools can read them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from order_relay.delivery.answer import Answer
from order_relay.errors import InvalidEvent
from order_relay.model.headers import EVENT_ID_HEADER
from order_relay.model.record import Record

Headers = list[tuple[str, bytes | None]]

# Long enough for what a person would read, and short enough for the topic's size limit.
MAX_TEXT_BYTES = 2048
_OURS = ("kafka_dlt-", "dlq-")
CONSUMER_HEADER = "dlq-consumer"
"""Names the consumer that gave up the record. A redriven record is for this consumer only."""
_TIMESTAMP_TYPES = {0: b"CreateTime", 1: b"LogAppendTime"}


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that was given up, and why.

    Attributes:
        record: The record as it came.
        reason: Short code: ``tombstone``, ``invalid_utf8``, ``invalid_json``, ``invalid_event``,
            ``rejected`` or ``retries_exhausted``.
        message: What happened, as text.
        error_type: Full name of the error's class.
        cause_type: Full name of the class of the underlying error, if there is one.
        attempts: Attempts that counted against the record.
        http_status: HTTP status of the last answer, if there was one.
        failed_at: When it was given up; with a time zone.
    """

    record: Record
    reason: str
    message: str
    error_type: str
    attempts: int
    failed_at: datetime
    cause_type: str | None = None
    http_status: int | None = None


def broken_record_letter(record: Record, error: InvalidEvent, failed_at: datetime) -> DeadLetter:
    """Return the dead letter of a record that is not a valid event."""
    cause = error.__cause__
    return DeadLetter(
        record=record,
        reason=error.reason,
        message=str(error),
        error_type=full_name(error),
        cause_type=full_name(cause) if cause is not None else None,
        attempts=0,
        failed_at=failed_at,
    )


def refused_letter(
    record: Record, reason: str, answer: Answer, attempts: int, failed_at: datetime
) -> DeadLetter:
    """Return the dead letter of a record whose last attempt got ``answer``."""
    if answer.status is not None:
        status = f"HTTP {answer.status}"
    else:
        status = "failed" if answer.failure == "function" else "no answer"
    return DeadLetter(
        record=record,
        reason=reason,
        message=f"{status}: {answer.detail}" if answer.detail else status,
        error_type=f"order_relay.{'Rejected' if reason == 'rejected' else 'RetriesExhausted'}",
        cause_type=answer.error_type,
        attempts=attempts,
        http_status=answer.status,
        failed_at=failed_at,
    )


class DeadLetterSink(Protocol):
    """Stores dead letters."""

    async def send(self, letter: DeadLetter) -> None:
        """Store a dead letter durably. When this returns, its record is finished.

        It may be called again with the same letter after an error. A cancelled call may or may not
        have stored it.

        Raises:
            RelayError: It could not be stored.
        """


def dead_letter_headers(letter: DeadLetter, group_id: str, consumer: str) -> Headers:
    """Return all headers of a dead letter of this consumer and consumer group.

    The record's own headers come first. Headers of an earlier dead letter are replaced, except
    ``dlq-redrives``, which is kept; it is 0 if there was none.
    """
    record = letter.record
    headers: Headers = [
        (name.replace("\0", "\\x00"), value)  # Kafka's client cuts names at a zero character
        for name, value in record.headers
        if not name.startswith(_OURS) and name != EVENT_ID_HEADER
    ]
    # With a zero character it would be shown, and filtered, as hexadecimal digits.
    message = _bounded(letter.message.replace("\0", "\\x00"))
    failed_at = letter.failed_at.astimezone(UTC).isoformat(timespec="milliseconds")
    headers += [
        (EVENT_ID_HEADER, record.event_id()),
        ("kafka_dlt-original-topic", record.topic.encode()),
        ("kafka_dlt-original-partition", struct.pack(">i", record.partition)),
        ("kafka_dlt-original-offset", struct.pack(">q", record.offset)),
        ("kafka_dlt-original-timestamp", struct.pack(">q", record.timestamp_ms)),
        (
            "kafka_dlt-original-timestamp-type",
            _TIMESTAMP_TYPES.get(record.timestamp_type, b"NoTimestampType"),
        ),
        ("kafka_dlt-original-consumer-group", group_id.encode()),
        ("kafka_dlt-exception-fqcn", letter.error_type.encode()),
    ]
    if letter.cause_type is not None:
        headers.append(("kafka_dlt-exception-cause-fqcn", letter.cause_type.encode()))
    headers += [
        ("kafka_dlt-exception-message", message),
        ("kafka_dlt-exception-stacktrace", letter.error_type.encode() + b": " + message),
        (CONSUMER_HEADER, consumer.encode()),
        ("dlq-reason", letter.reason.encode()),
        ("dlq-attempts", str(letter.attempts).encode()),
        ("dlq-failed-at", failed_at.encode()),
        ("dlq-redrives", record.header("dlq-redrives") or b"0"),
    ]
    if letter.http_status is not None:
        headers.append(("dlq-http-status", str(letter.http_status).encode()))
    return headers


def drop_long_headers(headers: Headers) -> Headers:
    """Remove the long texts from a dead letter that is over the topic's size limit."""
    texts = ("kafka_dlt-exception-message", "kafka_dlt-exception-stacktrace")
    return [(name, value) for name, value in headers if name not in texts]


def full_name(error: BaseException) -> str:
    """Return the full name of an error's class."""
    kind = type(error)
    return f"{kind.__module__}.{kind.__qualname__}"


def _bounded(text: str) -> bytes:
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= MAX_TEXT_BYTES:
        return encoded
    return encoded[:MAX_TEXT_BYTES].decode("utf-8", "ignore").encode() + "…".encode()
