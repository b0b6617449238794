"""Runs one consumer of the worker: everything between its topic and its target."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from faust.sensors.prometheus import FaustMetrics

from order_relay.dead_letters.auto_redrive import AutoRedrive
from order_relay.dead_letters.open_letters import OpenLetters
from order_relay.dead_letters.open_topic import TopicLog, open_topic
from order_relay.dead_letters.redrive import Redrive
from order_relay.dead_letters.redrive_group import RedriveGroup
from order_relay.deliveries.changelog import Changelog
from order_relay.deliveries.lookup import OrderLookup
from order_relay.deliveries.recovery import Recovery
from order_relay.deliveries.stores import MemoryStore, RocksStore
from order_relay.deliveries.table import DeliveriesTable
from order_relay.delivery.answer import PostHandler, RetryPolicy, earlier
from order_relay.delivery.batches import Batching
from order_relay.delivery.dead_letters import DeadLetterSink
from order_relay.delivery.dispatcher import Dispatcher
from order_relay.delivery.target_health import TargetState
from order_relay.fallback.dead_letters import DeadLetters
from order_relay.handlers.function import FunctionHandler
from order_relay.handlers.http import HttpHandler
from order_relay.kafka.availability import check_availability
from order_relay.kafka.consumer import partition_of
from order_relay.kafka.producer import KafkaProducer
from order_relay.kafka.topics import Topics
from order_relay.logs.log_line import CONSUMER
from order_relay.model.consumer import HttpPost
from order_relay.model.events import Events
from order_relay.model.order_paid import OrderId
from order_relay.model.record import Record
from order_relay.monitoring.health import Health, StandsStill, end_at_standstill
from order_relay.monitoring.history import History
from order_relay.monitoring.measurements import watch_lag, watch_retention
from order_relay.monitoring.metrics import Metrics
from order_relay.monitoring.stats import Stats
from order_relay.settings import Settings
from order_relay.settings.consumers import ConfiguredConsumer
from order_relay.settings.rules import parse_waits
from order_relay.web.consumer import ServedConsumer
from order_relay.worker.consumer_app import (
    consumer_app,
    longest_rebalance,
    longest_request,
    read_topic,
)
from order_relay.worker.fallback_service import Fallback

if TYPE_CHECKING:
    from order_relay.tracing.spans import Tracing

# In a rebalance the group waits for the attempts in flight of its slowest member. This stays well
# below REBALANCE_SECONDS, whatever the target's time-out is.
MAX_REBALANCE_DRAIN_SECONDS = 20.0


class ConsumerRuntime:
    """Runs one consumer. It neither starts nor stops what consumers share.

    Attributes:
        name: The consumer's name.
        settings: The worker's settings with the consumer's own values.
        metrics: Its metrics.
        app: Its Faust application.
        dispatcher: Its dispatcher.
        health: Its health checks.
        stats: Its statistics.
        history: Its last hours.
        deliveries: Its deliveries table; ``None``: switched off.
        lookup: Finds orders in the table; ``None``: switched off.
        open_letters: Knows its open dead letters.
    """

    def __init__(
        self,
        consumer: ConfiguredConsumer,
        *,
        producer: KafkaProducer,
        topics: Topics,
        fallback: Fallback,
        metrics: Metrics,
        faust_metrics: FaustMetrics,
        max_in_flight: int,
        tracing: Tracing | None = None,
    ) -> None:
        """Prepare, within the running event loop. Starts and connects nothing.

        Args:
            consumer: The consumer to run.
            producer: Writes dead letters and the table's changelog.
            topics: Declares the consumer's topics.
            fallback: Saves dead letters that Kafka refuses, and finds saved orders.
            metrics: The worker's metrics.
            faust_metrics: Faust's own metrics.
            max_in_flight: The number of concurrent attempts that file descriptors allow.
            tracing: Makes spans of attempts and dead letters; ``None``: none.
        """
        declaration, settings = consumer.declaration, consumer.settings
        self.name = consumer.name
        self.settings = settings
        self._topics = topics
        self._producer = producer
        self._events = Events(declaration.event, subject=declaration.subject)
        self.metrics = metrics.of(self.name)
        self.app = consumer_app(settings, faust_metrics)
        self._reader = self.app.reader
        handler = declaration.handled_by()
        self._target = (
            HttpHandler(settings, max_in_flight)
            if isinstance(handler, HttpPost)
            else FunctionHandler(handler, settings, max_in_flight)
        )
        self._tracing = tracing
        self._spans = (
            tracing.of_consumer(self.name, settings.consumer_group_id) if tracing else None
        )
        table = self._deliveries_table() if settings.deliveries_store != "off" else None
        self.deliveries = table
        self.dispatcher = Dispatcher(
            self._traced_target(),
            self._dead_letters(fallback),
            self.metrics,
            table.finished if table else lambda record, _: self._reader.finished(record),
            consumer=self.name,
            events=self._events,
            key=declaration.key,
            is_delivered=table.is_delivered if table else lambda record, order_id: False,
            is_finished=self._is_finished,
            policy=RetryPolicy(
                max_retries=settings.consumer_retry_max_attempts,
                initial_seconds=settings.consumer_retry_initial_interval_ms / 1000,
                multiplier=settings.consumer_retry_multiplier,
                max_seconds=settings.consumer_retry_max_interval_ms / 1000,
                vary=earlier,
            ),
            breaker_threshold=settings.breaker_failure_threshold,
            breaker_probe_interval_seconds=settings.breaker_probe_interval_seconds,
            reading=self._reader,
            max_in_flight=max_in_flight,
            max_rate=settings.external_logger_max_rate,
            batching=Batching(
                settings.external_logger_batch_size,
                settings.external_logger_batch_bytes,
                settings.external_logger_batch_linger_ms / 1000,
                settings.external_logger_batch_format,
                raw=declaration.event is bytes,
            ),
            tracer=self._spans,
        )
        self.health = Health(
            self.dispatcher,
            settings,
            excused=self._excused,
            intake_stall_seconds=longest_rebalance(settings) + 2 * longest_request(settings),
            clock=time.monotonic,
        )
        self.stats = Stats(self.metrics, settings, self._reader, self.dispatcher)
        self.history = History(self.dispatcher.target, self.stats.minute)
        self.lookup = None if self.deliveries is None else self._lookup(self.deliveries, fallback)
        self.open_letters = OpenLetters(
            partial(TopicLog, settings),
            RedriveGroup(settings).commits,
            self.metrics.open_letters,
            self.metrics.counters["dead_letters_open_deleted"].inc,
            topic=settings.dlq_topic,
        )
        self._register_metrics()
        self._watches: list[asyncio.Task[None]] = []
        read_topic(self.app, self.name, settings.order_paid_topic, self.submit)
        deleted = self.metrics.counters["deleted_records"].inc
        self._reader.deliver_with(self, self.dispatcher.left, deleted)

    def _traced_target(self) -> PostHandler | FunctionHandler:
        target = self._target
        if self._tracing is None or isinstance(target, FunctionHandler):
            return target
        return self._tracing.posts(target, self.settings.external_logger_url)

    def _dead_letters(self, fallback: Fallback) -> DeadLetterSink:
        settings, tracing = self.settings, self._tracing
        sink = DeadLetters(
            self._producer,
            fallback.store,
            settings.dlq_topic,
            group_id=settings.consumer_group_id,
            consumer=self.name,
            max_retry=settings.fallback_max_retry,
            outage=lambda: fallback.publisher.outage,
            on_saved=self.metrics.counters["dead_letters_saved"].inc,
        )
        return sink if tracing is None else tracing.dead_letters(sink, settings.dlq_topic)

    def _deliveries_table(self) -> DeliveriesTable:
        settings = self.settings
        changelog = Changelog(self._producer, settings.deliveries_changelog_topic)
        in_memory = settings.deliveries_store == "memory"
        folder = table_folder(settings)
        return DeliveriesTable(
            changelog,
            Recovery(settings, changelog.topic, self._producer.ping),
            lambda partition: MemoryStore() if in_memory else RocksStore(folder / str(partition)),
            self._reader.finished,
            self.metrics.gauges["table_recovery_seconds"].set,
            retention_seconds=settings.deliveries_retention_hours * 3600,
            max_entries=settings.deliveries_max_entries if in_memory else None,
        )

    def _lookup(self, deliveries: DeliveriesTable, fallback: Fallback) -> OrderLookup:
        topic = self.settings.order_paid_topic
        return OrderLookup(
            deliveries,
            self.dispatcher.find,
            partial(self._reader.owners, topic),
            str(self.settings.own_url),
            consumer=self.name,
            events=self._events,
            partition_of=partition_of,
            partition_count=partial(self._producer.partition_count, topic),
            retention_hours=self.settings.deliveries_retention_hours,
            saved=partial(fallback.store.find_saved, topic),
            unread=partial(self._reader.unread, topic),
        )

    def _register_metrics(self) -> None:
        self.metrics.watch(
            in_flight=lambda: self.dispatcher.in_flight,
            held_records=lambda: self.dispatcher.queued,
            left_in_kafka_records=lambda: self.dispatcher.left.count,
            breaker_state=lambda: self.dispatcher.breaker.state,
            oldest_unfinished_seconds=self._reader.oldest_unfinished_seconds,
            assigned_partitions=lambda: self.health.assigned_partitions,
            kafka_up=self.health.kafka_answers,
            intake_stopped_seconds=self.health.intake_stopped_seconds,
        )
        self.metrics.target = self.dispatcher.target
        if (deliveries := self.deliveries) is not None:
            self.metrics.watch(
                table_entries=lambda: deliveries.entries,
                table_recovering=lambda: deliveries.recovering,
                table_partitions_off=lambda: deliveries.off,
            )

    # --- starting and stopping, in this order ---------------------------------------------------

    async def start(
        self,
        pause: Callable[[float], Awaitable[bool]],
        end: Callable[[StandsStill], Awaitable[None]],
    ) -> None:
        """Declare the topics, then start reading and delivering.

        Args:
            pause: Waits the given seconds; returns ``True`` when the worker stops.
            end: Ends the worker with status 1.
        """
        CONSUMER.set(self.name)
        self._watch(
            self.history.run(),
            self.stats.log_regularly(self.settings.fallback_stats_interval_seconds),
        )
        if not await self._topics.wait_until_ready(pause, self.settings):
            return  # the worker stops
        if isinstance(self._target, HttpHandler):
            await self._target.start()
        topic = self.settings.order_paid_topic
        retention = partial(self._topics.retention_seconds, topic)
        partitions = partial(self._producer.partition_count, topic)
        self._watch(
            watch_lag(
                self._reader,
                partitions,
                self.metrics,
                self.health,
                check_brokers=self.check_brokers,
            ),
            end_at_standstill(self.health, end),
            watch_retention(self._reader, retention, self.metrics),
            self.open_letters.run(),
        )
        if waits := parse_waits(self.settings.dlq_auto_redrive):
            self._watch(self._auto_redrive(waits).run())
        if self.deliveries is not None:
            self._watch(self.deliveries.sweep_regularly())
        await self.app.maybe_start()

    async def check_brokers(self) -> None:
        """Check that Kafka works for this worker; the consumer's own client may be what hangs.

        Asks the brokers for the worker's partitions; without partitions, for all of the topic.

        Raises:
            KafkaUnavailable: A broker that the worker needs does not answer.
        """
        topic = self.settings.order_paid_topic
        own = {tp.partition for tp in self._reader.committed_offsets() if tp.topic == topic}
        await check_availability(self.settings, self.settings.consumer_group_id, topic, own)

    async def drain(self, grace_seconds: float) -> None:
        """Stop the intake, and give attempts under way ``grace_seconds`` to end.

        The rest stays unfinished: the partitions' next worker delivers it.
        """
        CONSUMER.set(self.name)
        self._reader.end_intake()
        await self.dispatcher.drain(attempt_seconds=grace_seconds)

    async def commit(self) -> None:
        """Make the final commit of everything that is finished."""
        CONSUMER.set(self.name)
        if self.deliveries is not None:
            await self.deliveries.close()
        await self._reader.final_commit()
        for watch in self._watches:
            watch.cancel()

    async def stop(self) -> None:
        """Leave the group, and stop all clients of this consumer."""
        CONSUMER.set(self.name)
        await self.app.stop()
        if isinstance(self._target, HttpHandler):
            await self._target.stop()
        else:
            self._target.stop()

    async def close(self) -> None:
        """Close what the web server's pages use; call it when they are no longer served."""
        self.open_letters.close()
        if self.lookup is not None:
            await self.lookup.close()

    def _watch(self, *works: Coroutine[Any, Any, None]) -> None:
        self._watches += map(asyncio.create_task, works)

    def _auto_redrive(self, waits_seconds: Sequence[float]) -> AutoRedrive:
        rate = self.settings.dlq_auto_redrive_rate
        return AutoRedrive(
            self.open_letters,
            partial(open_topic, self.settings),
            partial(
                Redrive,
                self._producer,
                topic=self.settings.order_paid_topic,
                consumer=self.name,
                rate=rate,
                tracing=self._tracing,
            ),
            waits_seconds=waits_seconds,
            rate=rate,
            target_works=self._target_works,
            on_redriven=self.metrics.counters["dead_letters_auto_redriven"].inc,
        )

    def _target_works(self) -> bool:
        return self.dispatcher.target().state is TargetState.WORKS and not self.dispatcher.paused

    def served(self) -> ServedConsumer:
        """Return what the web server shows and changes."""
        return ServedConsumer(
            self.settings,
            self.health,
            self.stats,
            self.history,
            self.lookup,
            self.open_letters,
            partial(open_topic, self.settings),
            self.dispatcher,
        )

    def workers(self) -> set[str]:
        """Return the URLs of the workers that have a partition, as far as they are known."""
        return set(self._reader.owners(self.settings.order_paid_topic).values())

    # --- between the reader and the relay -------------------------------------------------------

    async def submit(self, record: Record) -> None:
        """Submit a record for delivery; waits for room, and for the table's recovery."""
        deliveries = self.deliveries
        if deliveries is not None and not deliveries.ready and not await deliveries.until_ready():
            return  # its partition was revoked: the record is read again
        if not self._reader.claim(record):
            return
        if self._spans is not None:
            record = self._spans.received(record)
        if not await self.dispatcher.submit(record):
            self._reader.leave(record)

    def _is_finished(self, record: Record, order_id: OrderId | None) -> bool:
        """Whether the record is finished whose id a record carries."""
        position = record.claimed_position()
        if position is not None and self._reader.is_finished(record.topic, *position):
            return True
        return self.deliveries is not None and self.deliveries.is_finished(record, order_id)

    def _excused(self) -> bool:
        recovering = self.deliveries is not None and self.deliveries.recovering
        # They may take any time. A restart would end other consumers' work, and they hang again.
        in_threads = isinstance(self._target, FunctionHandler) and self._target.in_threads
        return bool(self.dispatcher.dead_lettering or recovering or in_threads)

    async def revoking(self) -> None:
        """See ``DeliverySide``. Attempts in flight may finish; records in backoff are left."""
        CONSUMER.set(self.name)
        attempt_seconds = min(
            self.settings.external_logger_timeout_seconds + 1.0, MAX_REBALANCE_DRAIN_SECONDS
        )
        self.health.assigned_partitions = 0
        await self.dispatcher.drain(attempt_seconds=attempt_seconds)
        if self.deliveries is not None:
            await self.deliveries.revoking()

    def assigned(self, partitions: Collection[int]) -> None:
        """See ``DeliverySide``."""
        CONSUMER.set(self.name)
        self.health.assigned_partitions = len(partitions)
        if self.deliveries is not None:
            self.deliveries.assigned(partitions)
        self.dispatcher.resume()


def table_folder(settings: Settings) -> Path:
    """Return the folder of a consumer's deliveries table, if it is kept on disk."""
    return settings.data_dir / settings.deliveries_changelog_topic


def prepare_folder(settings: Settings) -> None:
    """Make DATA_DIR, which contains the tables.

    Raises:
        SystemExit: RocksDB is not installed, or DATA_DIR cannot be written to; one line.
    """
    if find_spec("rocksdict") is None:
        raise SystemExit("DELIVERIES_STORE=rocksdb needs: pip install 'order-relay[rocksdb]'")
    data_dir = settings.data_dir
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=data_dir):
            pass
    except OSError as error:
        raise SystemExit(
            f"DATA_DIR={str(data_dir)!r} must be a folder that can be written to: {error.strerror}"
        ) from None
