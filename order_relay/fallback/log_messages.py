"""What the log says of a row of the fallback table; docs/operations.md lists the phrases."""

from __future__ import annotations

from order_relay.fallback.store import FallbackRow, FallbackStats, GiveUp, Retry
from order_relay.kafka.producer import Acknowledged
from order_relay.logs.log_line import FiguresLine, LogLine
from order_relay.model.trace_context import trace_id


def published(row: FallbackRow, acknowledged: Acknowledged) -> LogLine:
    """A row reached Kafka."""
    return LogLine(
        "Fallback message published successfully",
        id=row.id,
        topic=acknowledged.topic,
        partition=acknowledged.partition,
        offset=acknowledged.offset,
        trace_id=trace_id(row.headers),
    )


def refused(row: FallbackRow, outcome: Retry) -> LogLine:
    """Kafka refused a row, which is tried again."""
    return LogLine(
        "Fallback message refused",
        id=row.id,
        topic=row.topic,
        retry=f"{outcome.retry_count}/{row.max_retry}",
        next_retry_at=outcome.next_retry_at.isoformat(timespec="seconds"),
        reason=outcome.error_message,
        trace_id=trace_id(row.headers),
    )


def failed(row: FallbackRow, outcome: GiveUp) -> LogLine:
    """Kafka never takes a row: it is FAILED."""
    return LogLine(
        "Fallback message failed and waits for a person",
        id=row.id,
        topic=row.topic,
        retry=f"{outcome.retry_count}/{row.max_retry}",
        reason=outcome.error_message,
        trace_id=trace_id(row.headers),
    )


def figures(stats: FallbackStats) -> FiguresLine:
    """The rows by status, each hour."""
    return FiguresLine(
        "Fallback message stats",
        pending=stats.pending,
        published=stats.published,
        failed=stats.failed,
    )
