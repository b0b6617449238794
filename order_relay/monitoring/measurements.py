"""What is measured at intervals beside the deliveries: lag, retention, the event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from order_relay.errors import RetryableError
from order_relay.logs.log_line import LogLine
from order_relay.monitoring.health import Health
from order_relay.monitoring.metrics import ConsumerMetrics

if TYPE_CHECKING:
    from faust.types import TP

    from order_relay.kafka.consumer import RelayConsumer

logger = logging.getLogger(__name__)

LOOP_INTERVAL_SECONDS = 0.25
LAG_INTERVAL_SECONDS = 2.0
RETENTION_INTERVAL_SECONDS = 10.0
# A request may take longer than an interval; the next round starts after it.
TIMEOUT_SECONDS = 5.0
# From this share of the topic's retention on, a record is near its deletion.
NEAR = 0.75


async def _measure_every(
    seconds: float, measure: Callable[[], Awaitable[None]], on_problem: Callable[[str], None]
) -> None:
    """Measure at every interval until cancelled, also after any error of a Kafka client.

    Outages and time-outs have log lines of their own elsewhere. Any other error is passed to
    ``on_problem``, and again only after it has changed or measuring has worked.
    """
    reported = ""
    while True:
        try:
            await measure()
            reported = ""
        except (RetryableError, TimeoutError) as error:
            logger.debug("Not measured: %s", error)
        except Exception as error:  # noqa: BLE001 - a Kafka client may raise anything
            problem = f"{type(error).__name__}: {error}"
            if problem != reported:
                on_problem(problem)
            reported = problem
        await asyncio.sleep(seconds)


# --- lag ----------------------------------------------------------------------------------------


async def watch_lag(
    reader: RelayConsumer,
    count_partitions: Callable[[], Awaitable[int]],
    metrics: ConsumerMetrics,
    health: Health,
    clock: Callable[[], float] = time.monotonic,
    *,
    check_brokers: Callable[[], Awaitable[None]],
) -> None:
    """Measure lag, and pass the state of Kafka and the intake to health, until cancelled.

    While no broker answers, the number of partitions stays: they still exist. Any broker tells it,
    also one without a quorum. So Kafka answers only after ``check_brokers`` if the last round
    found something wrong, or this one does.

    Args:
        reader: The consumer. Requests to Kafka may hang or raise.
        count_partitions: Asks a broker for the topic's number of partitions; raises
            ``KafkaUnavailable`` if none answers.
        metrics: Shows the lag and the number of partitions.
        health: The consumer's health.
        clock: Monotonic seconds, the same as that of ``health``.
        check_brokers: Asks the brokers that this worker needs, not with the consumer's client;
            raises ``KafkaUnavailable`` unless they answer.
    """
    seen: dict[TP, Seen] = {}
    doubted = True

    async def measure() -> None:
        nonlocal doubted
        try:
            fault, consumer_answered = await _check_intake(reader)
            try:
                count = await count_partitions()
                if fault is not None or doubted:
                    doubted = True
                    await check_brokers()
            except BaseException:
                health.note_intake(None)  # without Kafka the intake has nothing to do
                raise
            metrics.gauges["topic_partitions"].set(count)
            health.kafka_seen_at = clock()
            health.note_intake(fault, consumer_answered=consumer_answered)
            await _measure_lag(reader, metrics, health, seen, clock)
            doubted = fault is not None
        except Exception:
            doubted = True
            health.unfinished = 0
            raise

    await _measure_every(
        LAG_INTERVAL_SECONDS, measure, lambda problem: logger.info("Lag not measured: %s", problem)
    )


async def _check_intake(reader: RelayConsumer) -> tuple[str | None, bool]:
    """Return what of the intake stands still, and whether Kafka answers the consumer's client."""
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await reader.check_group()
    except TimeoutError:
        return "the thread of Kafka's client does not answer", False
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            answered = await reader.kafka_answers()
    except Exception as error:  # noqa: BLE001 - any error means no answer
        logger.debug("No answer to the consumer's client: %r", error)
        answered = False
    # Called in any case: each answer is about the time since the last call.
    fault = reader.standstill()
    return (fault, True) if answered else ("no broker answers the consumer's client", False)


class Seen(NamedTuple):
    """How far a partition could be read.

    Attributes:
        readable_to: Its end, or the first offset of an open transaction.
        since: The time when it was last the end, or first this offset; monotonic seconds.
    """

    readable_to: int
    since: float


async def _measure_lag(
    reader: RelayConsumer,
    metrics: ConsumerMetrics,
    health: Health,
    seen: dict[TP, Seen],
    clock: Callable[[], float],
) -> None:
    """Show the lag; ``seen`` is kept from one round to the next."""
    committed = reader.committed_offsets()
    finished_to = reader.finished_to()
    ends: Mapping[TP, int] = {}
    readable: Mapping[TP, int] = {}
    starts: Mapping[TP, int] = {}
    async with asyncio.timeout(TIMEOUT_SECONDS):
        if committed:
            # In this order: a record written in between does not look like an open transaction.
            ends = await reader.log_ends(*committed)
            readable = await reader.highwaters(*committed)
        if uncommitted := [p for p, offset in committed.items() if offset is None]:
            starts = await reader.earliest_offsets(*uncommitted)
    for gone in seen.keys() - committed.keys():
        del seen[gone]
        metrics.of_partition("consumer_lag", *gone, None)
        metrics.of_partition("transaction_open_seconds", *gone, None)
    now = clock()
    unfinished = 0
    for partition, offset in committed.items():
        start = starts.get(partition, 0) if offset is None else offset
        to = readable.get(partition, start)
        end = max(ends.get(partition, to), to)
        # Unreadable records are not work for this worker: a restart would not help.
        finished = finished_to.get(partition)
        unfinished += max(to - (start if finished is None else finished), 0)
        blocked = partition in seen and seen[partition].readable_to == to < end
        if not blocked:
            seen[partition] = Seen(to, now)
        metrics.of_partition("consumer_lag", *partition, max(end - start, 0))
        open_seconds = now - seen[partition].since
        metrics.of_partition("transaction_open_seconds", *partition, open_seconds)
    health.unfinished = unfinished


# --- retention ----------------------------------------------------------------------------------


async def watch_retention(
    reader: RelayConsumer,
    retention_seconds: Callable[[], Awaitable[float | None]],
    metrics: ConsumerMetrics,
    clock: Callable[[], float] = time.time,
) -> None:
    """Count every ten seconds the unfinished records near their deletion, until cancelled.

    Args:
        reader: The consumer. Requests to Kafka may hang or raise.
        retention_seconds: Asks how long Kafka keeps records; ``None``: without limit.
        metrics: Shows the count.
        clock: Seconds since the epoch.
    """
    shown: set[TP] = set()

    async def measure() -> None:
        retention = await retention_seconds()
        finished_to = {p: end for p, end in reader.finished_to().items() if end is not None}
        old_to: dict[TP, int] = {}
        if finished_to and retention is not None:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                ends = await reader.log_ends(*finished_to)
                young = await reader.offsets_at(clock() - NEAR * retention, *finished_to)
            old_to = {**ends, **young}
        for gone in shown - finished_to.keys():
            shown.remove(gone)
            metrics.of_partition("near_deletion_records", *gone, None)
        for partition, finished in finished_to.items():
            shown.add(partition)
            near = max(old_to.get(partition, finished) - finished, 0)
            metrics.of_partition("near_deletion_records", *partition, near)

    def warn(problem: str) -> None:
        logger.warning(
            LogLine("Retention not measured, so nothing warns before it ends", detail=problem)
        )

    await _measure_every(RETENTION_INTERVAL_SECONDS, measure, warn)


# --- the event loop -------------------------------------------------------------------------------


async def watch_event_loop(lagged: Callable[[float], None]) -> None:
    """Measure four times a second how much later than asked the loop woke, until cancelled.

    All deliveries share the loop: code that blocks it delays each of them by that time.
    """
    loop = asyncio.get_running_loop()
    while True:
        asked = loop.time()
        await asyncio.sleep(LOOP_INTERVAL_SECONDS)
        lagged(max(loop.time() - asked - LOOP_INTERVAL_SECONDS, 0.0))
