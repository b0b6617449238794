"""The log lines of a delivery; docs/reference/logs.md lists the phrases."""

from __future__ import annotations

import math

from order_relay.delivery.answer import Answer
from order_relay.delivery.dead_letters import DeadLetter
from order_relay.delivery.target_health import BreakerState, LastFailure
from order_relay.logs.log_line import LogLine
from order_relay.model.record import Record
from order_relay.model.trace_context import trace_id

MAX_DETAIL_LENGTH = 200


def _record_line(phrase: str, record: Record, **fields: object) -> LogLine:
    return LogLine(
        phrase,
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        event_id=record.idempotency_key(),
        **fields,
        trace_id=trace_id(record.headers),
    )


def retrying(
    record: Record, answer: Answer, failures: int, wait_seconds: float, breaker: BreakerState
) -> LogLine:
    """An attempt failed, and another one follows."""
    return _record_line(
        "Retrying message",
        record,
        failures=failures,
        status=answer.status,
        wait_seconds=round(float(wait_seconds), 1),
        breaker=breaker.name.lower(),
        detail=answer.detail[:MAX_DETAIL_LENGTH],
    )


def delivered_before(record: Record) -> LogLine:
    """A record is finished without being sent: its event was delivered before."""
    return _record_line("Event was delivered before, not sent again", record)


def foreign_id(record: Record) -> LogLine:
    """A record has the event id of another record."""
    return _record_line("Event id is that of another record, its own place is used", record)


def given_up(letter: DeadLetter) -> LogLine:
    """A record is given up, and its dead letter is sent."""
    return _record_line(
        "Publishing failed message to DLQ",
        letter.record,
        reason=letter.reason,
        attempts=letter.attempts,
        status=letter.http_status,
        detail=letter.message[:MAX_DETAIL_LENGTH],
    )


def letter_refused(record: Record, failures: int, wait_seconds: float, refusal: str) -> LogLine:
    """A dead letter could not be stored; it is sent again."""
    return _record_line(
        "Dead letter refused, its record stays unfinished",
        record,
        failures=failures,
        wait_seconds=round(float(wait_seconds), 1),
        detail=refusal,
    )


def breaker_open(because: str, failure: LastFailure | None) -> LogLine:
    """An outage begins."""
    return LogLine(
        "Breaker open: the target fails; intake is paused",
        because=because,
        status=failure.status if failure else None,
        detail=failure.text[:MAX_DETAIL_LENGTH] if failure else "",
    )


def throttled(answer: Answer, wait_seconds: float, rate: float) -> LogLine:
    """The target throttles, and records are sent more slowly."""
    return LogLine(
        "Target throttles, sending more slowly",
        status=answer.status,
        retry_after_seconds=round(float(answer.retry_after_seconds), 1),
        wait_seconds=round(float(wait_seconds), 1),
        records_per_second=round(rate, 1) if math.isfinite(rate) else None,
        detail=answer.detail[:MAX_DETAIL_LENGTH],
    )


def local_failure(answer: Answer) -> LogLine:
    """This host lacks what it needs to send."""
    return LogLine(
        "This host lacks something to send with, trying again; no attempt counts",
        detail=answer.detail[:MAX_DETAIL_LENGTH],
    )
