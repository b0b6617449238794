"""When a refused row is tried again, and which refusals are for good. Pure rules."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from order_relay.errors import KafkaUnavailable, PublishRefused, RecordTooLarge
from order_relay.fallback.store import FallbackRow, GiveUp, Retry

# 2^n grows out of every calendar; a row is looked at once a day at least.
MAX_DELAY_SECONDS = 24 * 3600.0
MAX_ERROR_LENGTH = 2000

# These are refused until a person changes the topic, the rights or the record.
PERMANENT_CODES = frozenset(
    {
        "UNKNOWN_TOPIC_OR_PART",
        "_UNKNOWN_TOPIC",
        "TOPIC_EXCEPTION",  # the name is not a legal topic name
        "TOPIC_AUTHORIZATION_FAILED",
        "MSG_SIZE_TOO_LARGE",
        "INVALID_RECORD",
        "INVALID_MSG",
        "INVALID_TIMESTAMP",
        "_INVALID_ARG",  # our client cannot take it
    }
)

# No broker said a word about the record: our own client gave up, or never began.
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

# Our own queue, our own end, or the end of our client's session; no record is to blame.
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


@dataclass(frozen=True, slots=True)
class RetrySchedule:
    """After the n-th refusal a row waits ``base_seconds`` x 2^(n-1): 1, 2, 4, 8 minutes."""

    base_seconds: float = 60.0

    def delay_seconds(self, refusals: int) -> float:
        """Return the wait after so many refusals (1 is the first); at most a day."""
        if refusals < 1:
            raise ValueError("a row waits only after a refusal")
        # Beyond 2^64 the cap has long been reached, and floats overflow at 2^1024.
        return min(self.base_seconds * 2.0 ** min(refusals - 1, 64), MAX_DELAY_SECONDS)

    def after_refusal(self, row: FallbackRow, error: Exception, now: datetime) -> Retry | GiveUp:
        """Decide what becomes of a row that Kafka refused."""
        refusals = row.retry_count + 1
        text = str(error)[:MAX_ERROR_LENGTH]
        if is_permanent(error) or refusals >= row.max_retry:
            return GiveUp(row.id, refusals, text)
        wait = timedelta(seconds=self.delay_seconds(refusals))
        return Retry(row.id, refusals, now + wait, text)


def is_permanent(error: Exception) -> bool:
    """Whether Kafka would refuse the same record again, whenever it is asked."""
    return isinstance(error, RecordTooLarge) or (
        isinstance(error, PublishRefused) and error.code in PERMANENT_CODES
    )


def is_unanswered(error: Exception) -> bool:
    """Whether no broker said a word about the record: in an outage it looks like this."""
    return isinstance(error, KafkaUnavailable) or (
        isinstance(error, PublishRefused) and error.code in UNANSWERED_CODES
    )


def is_local(error: Exception) -> bool:
    """Whether our own client let go of the record: Kafka was never asked for an answer."""
    return isinstance(error, PublishRefused) and error.code in LOCAL_CODES
