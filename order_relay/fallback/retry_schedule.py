"""When a refused row is tried again, and which refusals are final. Pure rules."""

from __future__ import annotations

from datetime import datetime, timedelta

from order_relay.errors import KafkaUnavailable, PublishRefused, RecordTooLarge
from order_relay.fallback.store import FallbackRow, Outcome, Status

# 2^n would soon exceed any calendar; a row is tried once a day at least.
MAX_DELAY_SECONDS = 24 * 3600.0
MAX_ERROR_LENGTH = 2000
# PostgreSQL's INTEGER. It would refuse a larger retry_count and all results written with it.
MAX_REFUSALS = 2**31 - 1

# Kafka refuses these until a person changes the topic, the rights or the record.
PERMANENT_CODES = frozenset(
    {
        "UNKNOWN_TOPIC_OR_PART",
        "_UNKNOWN_TOPIC",
        "TOPIC_EXCEPTION",  # not a valid topic name
        "TOPIC_AUTHORIZATION_FAILED",
        "MSG_SIZE_TOO_LARGE",
        "INVALID_RECORD",
        "INVALID_MSG",
        "INVALID_TIMESTAMP",
        "_INVALID_ARG",  # our client cannot send it
    }
)

# No broker answered: our client gave up waiting, or did not send the record.
UNANSWERED_CODES = frozenset(
    {
        "",
        "_MSG_TIMED_OUT",
        "_TIMED_OUT",
        "_TIMED_OUT_QUEUE",
        "_TRANSPORT",
        "_ALL_BROKERS_DOWN",
        "_RESOLVE",
    }
)

# Our client's queue is full, it stops, or its session has ended; the record is not at fault.
LOCAL_CODES = frozenset(
    {
        "_QUEUE_FULL",
        "_DESTROY",
        "_FATAL",
        "_PURGE_QUEUE",
        "_PURGE_INFLIGHT",
        "OUT_OF_ORDER_SEQUENCE_NUMBER",
        "UNKNOWN_PRODUCER_ID",
        "INVALID_PRODUCER_EPOCH",
    }
)


def after_refusal(
    row: FallbackRow, error: Exception, now: datetime, base_seconds: float
) -> Outcome:
    """Return the outcome for a row that Kafka refused: FAILED, or PENDING for a later attempt."""
    # Other programs may have written any number.
    refusals = min(max(row.retry_count, 0) + 1, MAX_REFUSALS)
    text = str(error)[:MAX_ERROR_LENGTH]
    if is_permanent(error) or refusals >= row.max_retry:
        return Outcome(row.id, Status.FAILED, refusals, None, text)
    wait = timedelta(seconds=delay_seconds(refusals, base_seconds))
    return Outcome(row.id, Status.PENDING, refusals, now + wait, text)


def delay_seconds(refusals: int, base_seconds: float = 60.0) -> float:
    """Return the wait after the n-th refusal: ``base_seconds`` x 2^(n-1), at most a day.

    With the default: 1, 2, 4, 8 minutes.
    """
    # 2^64 is far above the cap, and floats overflow at 2^1024.
    return min(base_seconds * 2.0 ** min(refusals - 1, 64), MAX_DELAY_SECONDS)


def is_permanent(error: Exception) -> bool:
    """Whether Kafka would refuse the same record again."""
    return isinstance(error, RecordTooLarge) or (
        isinstance(error, PublishRefused) and error.code in PERMANENT_CODES
    )


def is_unanswered(error: Exception) -> bool:
    """Whether no broker answered for the record, as in an outage."""
    return isinstance(error, KafkaUnavailable) or (
        isinstance(error, PublishRefused) and error.code in UNANSWERED_CODES
    )


def is_local(error: Exception) -> bool:
    """Whether our own client dropped the record, so that Kafka is not at fault either."""
    return isinstance(error, PublishRefused) and error.code in LOCAL_CODES
