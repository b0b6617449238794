"""What the log says of a record; docs/operations.md lists the phrases."""

from __future__ import annotations

from app.delivery.answer import Answer
from app.delivery.breaker import BreakerState
from app.delivery.dead_letters import DeadLetter
from app.delivery.record import Record
from app.log_line import LogLine
from app.trace_context import trace_id

MAX_DETAIL_LENGTH = 200


def retrying(
    record: Record, answer: Answer, failures: int, wait_seconds: float, breaker: BreakerState
) -> LogLine:
    """An attempt failed, and another one follows."""
    return LogLine(
        "Retrying message",
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        event_id=record.idempotency_key(),
        failures=failures,
        status=answer.status,
        wait_seconds=round(float(wait_seconds), 1),
        breaker=breaker.name.lower(),
        detail=answer.detail[:MAX_DETAIL_LENGTH],
        trace_id=trace_id(record.headers),
    )


def delivered_before(record: Record) -> LogLine:
    """A record's event was delivered before: it is finished without being sent."""
    return LogLine(
        "Event was delivered before, not sent again",
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        event_id=record.idempotency_key(),
        trace_id=trace_id(record.headers),
    )


def given_up(letter: DeadLetter) -> LogLine:
    """A record is given up, and its dead letter sent."""
    record = letter.record
    return LogLine(
        "Publishing failed message to DLQ",
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        event_id=record.idempotency_key(),
        reason=letter.reason,
        attempts=letter.attempts,
        status=letter.http_status,
        detail=letter.message[:MAX_DETAIL_LENGTH],
        trace_id=trace_id(record.headers),
    )


def letter_refused(record: Record, failures: int, wait_seconds: float, refusal: str) -> LogLine:
    """Nobody takes a record's dead letter; it is sent again."""
    return LogLine(
        "Dead letter refused, its record stays unfinished",
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        failures=failures,
        wait_seconds=round(float(wait_seconds), 1),
        detail=refusal,
        trace_id=trace_id(record.headers),
    )
