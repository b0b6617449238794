"""Dead letters: what is written beside a record that could not be delivered.

A dead letter is the record as it came (key, value, its own headers) with two sets of headers:
Spring Kafka's ``kafka_dlt-*`` in Spring's byte formats (``DeadLetterPublishingRecoverer`` and
``KafkaHeaders``: numbers big-endian, text UTF-8), so that existing tools read them, and ours.
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

# Large enough for any answer a person would read, small enough to stay under topic limits.
MAX_TEXT_BYTES = 2048
_OURS = ("kafka_dlt-", "dlq-")
CONSUMER_HEADER = "dlq-consumer"
"""Whose dead letter it is; a redriven record with it is for that consumer alone."""
_TIMESTAMP_TYPES = {0: b"CreateTime", 1: b"LogAppendTime"}


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that was given up, and why.

    Attributes:
        record: The record as it came.
        reason: Short code: ``tombstone``, ``invalid_utf8``, ``invalid_json``, ``invalid_event``,
            ``rejected`` or ``retries_exhausted``.
        message: What happened, in words.
        error_type: Full name of the error's class.
        cause_type: Full name of the class of the error beneath it, if there is one.
        attempts: Attempts that were made and counted.
        http_status: The target's last answer, if it gave one.
        failed_at: When it was given up; with a zone.
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
    """Return the letter of a record that is not an ORDER_PAID event."""
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
    """Return the letter of a record that the target did not take; ``answer`` was its last word."""
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
    """Where dead letters go."""

    async def send(self, letter: DeadLetter) -> None:
        """Keep a dead letter for good: when this returns, its record is finished.

        May be called again with the same letter after any error; a cancelled call may or may not
        have kept it.

        Raises:
            RelayError: It could not be kept.
        """


def dead_letter_headers(letter: DeadLetter, group_id: str, consumer: str) -> Headers:
    """Return all headers of a dead letter, which a consumer of a group has given up.

    The record's own headers come first. Those of an earlier stay among the dead letters are
    replaced; ``dlq-redrives`` is kept, and 0 where there was none.
    """
    record = letter.record
    headers: Headers = [
        (name.replace("\0", "\\x00"), value)  # Kafka's client would cut the name off there
        for name, value in record.headers
        if not name.startswith(_OURS) and name != EVENT_ID_HEADER
    ]
    message = _bounded(letter.message)
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
        ("dlq-failed-at", _iso(letter.failed_at)),
        ("dlq-redrives", record.header("dlq-redrives") or b"0"),
    ]
    if letter.http_status is not None:
        headers.append(("dlq-http-status", str(letter.http_status).encode()))
    return headers


def drop_long_headers(headers: Headers) -> Headers:
    """Leave out the long texts, for a letter that is over the topic's size limit."""
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


def _iso(moment: datetime) -> bytes:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").encode()
