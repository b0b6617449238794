"""The log lines of deliveries; docs/reference/logs.md lists their phrases."""

from __future__ import annotations

import logging
import math
import traceback
from typing import Any

from order_relay.delivery.answer import Answer
from order_relay.delivery.breaker import Breaker, BreakerState
from order_relay.delivery.dead_letters import DeadLetter
from order_relay.logs.log_line import CONSUMER, LogLine
from order_relay.model.record import Record
from order_relay.model.trace_context import trace_id

# Minimum time between two lines about throttling, or about a lack of this host. A target that
# refuses one request in a hundred would fill the log otherwise.
CONDITION_LOG_SECONDS = 60.0
MAX_DETAIL_LENGTH = 200

logger = logging.getLogger(__name__)


class DeliveryLog:
    """Writes a line for each failure, and one each when a condition begins and ends.

    Attributes:
        conditions: The conditions that were logged and have not ended.
    """

    def __init__(self) -> None:
        """Start without any condition."""
        self.conditions: set[str] = set()
        self._logged_at: dict[str, float] = {}
        self._failures: set[str] = set()

    # --- one record -----------------------------------------------------------------------------

    def duplicate(self, record: Record) -> None:
        """Log a record whose event was delivered before."""
        logger.debug(_line("Event was delivered before, not sent again", record))

    def foreign_id(self, record: Record) -> None:
        """Log a record with the event id of another one."""
        logger.warning(_line("Event id is that of another record, its own place is used", record))

    def function_failed(self, failure: str, record: Record, error: BaseException) -> None:
        """Log a failure of the consumer's own function ``key`` or ``subject``, the first time."""
        if failure not in self._failures:
            self._failures.add(failure)
            detail = traceback.format_exception_only(error)[-1].strip()
            logger.warning(_line(failure, record, detail=detail))

    def retrying(
        self, record: Record, answer: Answer, failures: int, wait_seconds: float, breaker: Breaker
    ) -> None:
        """Log a failed attempt after which there is another one."""
        logger.warning(
            _line(
                "Retrying message",
                record,
                failures=failures,
                status=answer.status,
                wait_seconds=round(float(wait_seconds), 1),
                breaker=breaker.state.name.lower(),
                detail=answer.detail[:MAX_DETAIL_LENGTH],
            )
        )

    def given_up(self, letter: DeadLetter) -> None:
        """Log a record that is given up; its dead letter is sent next."""
        logger.error(
            _line(
                "Publishing failed message to DLQ",
                letter.record,
                reason=letter.reason,
                attempts=letter.attempts,
                status=letter.http_status,
                detail=letter.message[:MAX_DETAIL_LENGTH],
                page=_page("/dead-letters", event_id=letter.record.idempotency_key()),
            )
        )

    def dead_letter_refused(
        self, record: Record, refusal: str, failures: int, wait_seconds: float
    ) -> None:
        """Log a dead letter that could not be stored, and is sent again."""
        logger.error(
            _line(
                "Dead letter refused, its record stays unfinished",
                record,
                failures=failures,
                wait_seconds=round(float(wait_seconds), 1),
                detail=refusal,
            )
        )

    # --- conditions -----------------------------------------------------------------------------

    def throttled(self, answer: Answer, wait_seconds: float, rate: float, now: float) -> None:
        """Log that throttling begins, not more often than every CONDITION_LOG_SECONDS."""
        if not self._begins("throttling", now):
            return
        logger.warning(
            LogLine(
                "Target throttles, sending more slowly",
                status=answer.status,
                retry_after_seconds=round(float(answer.retry_after_seconds), 1),
                wait_seconds=round(float(wait_seconds), 1),
                records_per_second=round(rate, 1) if math.isfinite(rate) else None,
                detail=answer.detail[:MAX_DETAIL_LENGTH],
            )
        )

    def failed_locally(self, answer: Answer, now: float) -> None:
        """Log that this host lacks something to send with, as often as ``throttled``."""
        if self._begins("local failure", now):
            logger.error(
                LogLine(
                    "This host lacks something to send with, trying again; no attempt counts",
                    detail=answer.detail[:MAX_DETAIL_LENGTH],
                )
            )

    def _begins(self, condition: str, now: float) -> bool:
        """Whether to log that a condition begins; notes that it was logged."""
        logged_at = self._logged_at.get(condition, -math.inf)
        if condition in self.conditions or now - logged_at < CONDITION_LOG_SECONDS:
            return False
        self.conditions.add(condition)
        self._logged_at[condition] = now
        return True

    def succeeded(self, *, throttled: bool) -> None:
        """Log what a success ends. Without ``conditions`` the call does nothing."""
        self.conditions.discard("local failure")
        if not throttled and "throttling" in self.conditions:
            self.conditions.remove("throttling")
            logger.warning("Throttling is over: the target takes everything again")

    def breaker_changed(self, breaker: Breaker, state: BreakerState, last: Answer | None) -> None:
        """Log an outage's beginning and end.

        Args:
            breaker: The breaker.
            state: Its new state.
            last: The answer to the last failed attempt.
        """
        if state is BreakerState.OPEN and "outage" not in self.conditions:
            self.conditions.add("outage")
            logger.error(
                LogLine(
                    "Breaker open: the target fails; intake is paused",
                    because=breaker.opened_because,
                    status=last.status if last else None,
                    detail=last.detail[:MAX_DETAIL_LENGTH] if last else "",
                    page=_page("/consumers"),
                )
            )
        elif state is BreakerState.CLOSED:
            self.conditions.discard("outage")
            logger.warning("Breaker closed: the target works again")


def _line(phrase: str, record: Record, **fields: Any) -> LogLine:
    """Return a log line about a record."""
    return LogLine(
        phrase,
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        event_id=record.idempotency_key(),
        **fields,
        trace_id=trace_id(record.headers),
    )


def _page(path: str, **query: str) -> tuple[str, dict[str, str]]:
    """Return a page of the console about this consumer."""
    return path, {"consumer": CONSUMER.get(""), **query}
