"""The Faust application: what it is made of, and what starts and stops in which order."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Collection, Coroutine
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, cast

import faust
import mode.loop
from faust.sensors.prometheus import FaustMetrics
from mode.utils.objects import cached_property

from app import file_descriptors
from app.credentials import faust_credentials
from app.dead_letter_topic import DeadLetterTopic
from app.delivery.batches import Batching
from app.delivery.logger_client import HttpLogger
from app.delivery.outcome import Outcome
from app.delivery.record import Record
from app.delivery.relay import Relay
from app.delivery.retry import RetryPolicy
from app.events import OrderId
from app.fallback import Fallback
from app.fallback_dead_letters import FallbackDeadLetters
from app.faust_overrides import FaustSettings, FlowControl, ForeignChangelogs, RelayMonitor
from app.log_line import LogLine
from app.operations import log_limit
from app.operations.fallback_table import FallbackTable
from app.operations.health import Health
from app.operations.lag import watch_lag
from app.operations.metrics import Metrics
from app.operations.process_metrics import add_process_metrics, watch_event_loop
from app.operations.retention import watch_retention
from app.operations.standstill_watch import StandsStill, end_at_standstill
from app.operations.stats import Stats
from app.operations.target_figures import watch_target
from app.operations.topic_partitions import watch_topic_partitions
from app.operations.web import WebServer
from app.operations.web_connections import ConnectionLimits
from app.order_status.book import DeliveryBook
from app.order_status.lookup import OrderLookup
from app.publishing.producer import KafkaProducer
from app.secret_files import redact
from app.settings import Settings as RelaySettings
from app.shutdown_watch import ShutdownWatch
from app.topics import Topics
from app.transport import RecordBatches, RelayConsumer, RelayTransport, partition_of
from app.web_service import WebService

logger = logging.getLogger(__name__)

# After deliveries have ended: committing, leaving the group, closing connections.
SHUTDOWN_TAIL_SECONDS = 15.0
PRODUCER_STOP_SECONDS = 1.0
# A rebalance waits for attempts under way, and the group for the slowest member: well under
# REBALANCE_SECONDS, whatever the logger's time-out is.
MAX_REBALANCE_DRAIN_SECONDS = 20.0
# How long the group waits for members in a rebalance; a session of more than half makes it longer.
REBALANCE_SECONDS = 60.0
# A dead member is noticed after one session; of these so many heartbeats may be lost or late.
HEARTBEATS_PER_SESSION = 10
# A request may take so long; a session that comes close makes it longer, as Faust wants it.
REQUEST_SECONDS = 40.0
REQUEST_BEYOND_SESSION_SECONDS = 10.0
# A worker whose intake is paused does not poll; it must stay a member however long that takes.
MAX_POLL_INTERVAL_SECONDS = 365 * 24 * 3600.0
# Python's default of 700 new objects lets the garbage collector take a fifth of the time of a
# worker with hundreds of deliveries under way (docs/performance.md).
GC_THRESHOLDS = (10_000, 20, 20)


class RelayApp(faust.App):
    """Faust's app with the relay in it."""

    Settings = FaustSettings

    settings: RelaySettings
    relay: Relay

    @cached_property
    def flow_control(self) -> FlowControl:
        """What flows into the streams."""
        return FlowControl(loop=self.loop)

    def prepare(self, settings: RelaySettings) -> None:
        """Make everything the worker runs; nothing is started or connected."""
        self.settings = settings
        self._shares = file_descriptors.share(settings, file_descriptors.obtainable())
        self.metrics = Metrics()
        self.monitor = RelayMonitor(metrics=FaustMetrics.create(self.metrics.registry, "faust"))
        self.kafka_topics = Topics(settings)
        self.kafka_producer = KafkaProducer(settings)
        self.fallback = Fallback(
            settings,
            FallbackTable(
                settings.database_url.get_secret_value(), on_replaced=self.metrics.fallback_replaced
            ),
            self.kafka_producer,
            self.metrics,
        )
        token, proxy = settings.external_logger_token, settings.external_logger_proxy
        self.http_logger = HttpLogger(
            settings.external_logger_url,
            timeout_seconds=settings.external_logger_timeout_seconds,
            connect_timeout_seconds=settings.external_logger_connect_timeout_seconds,
            max_connections=self._shares.max_in_flight,
            content_type=settings.external_logger_content_type,
            token=token.get_secret_value() if token else None,
            headers=settings.target_headers,
            signing_keys=settings.signing_keys,
            ca_file=settings.external_logger_ca_file,
            certificate_file=settings.external_logger_cert_file,
            key_file=settings.external_logger_key_file,
            proxy=proxy.get_secret_value() if proxy else None,
            keep_bodies=settings.external_logger_batch_size > 1,
            redact=lambda text: redact(text, settings.secrets),
        )
        self.relay = Relay(
            self.http_logger,
            self._dead_letters(),
            self.metrics,
            self._on_finished,
            is_delivered=self._is_delivered,
            is_finished=self._is_finished,
            policy=RetryPolicy(
                max_retries=settings.consumer_retry_max_attempts,
                initial_seconds=settings.consumer_retry_initial_interval_ms / 1000,
                multiplier=settings.consumer_retry_multiplier,
                max_seconds=settings.consumer_retry_max_interval_ms / 1000,
            ),
            breaker_threshold=settings.breaker_failure_threshold,
            breaker_probe_interval_seconds=settings.breaker_probe_interval_seconds,
            reading=self,
            max_in_flight=self._shares.max_in_flight,
            max_rate=settings.external_logger_max_rate,
            batching=Batching(
                settings.external_logger_batch_size,
                settings.external_logger_batch_bytes,
                settings.external_logger_batch_linger_ms / 1000,
                settings.external_logger_batch_format,
            ),
        )
        self.health = Health(
            self.relay,
            breaker_closed=lambda: self.relay.breaker.closed,
            dead_lettering=lambda: self.relay.dead_lettering,
            recovering=lambda: self.deliveries is not None and self.deliveries.recovering,
            attempt_timeout_seconds=settings.external_logger_timeout_seconds,
            longest_backoff_seconds=settings.consumer_retry_max_interval_ms / 1000,
            intake_stall_seconds=_longest_rebalance(settings) + 2 * _longest_request(settings),
            clock=time.monotonic,
        )
        self.metrics.watch(
            in_flight=lambda: self.relay.in_flight,
            held=lambda: self.relay.held,
            breaker_state=lambda: self.relay.breaker.state,
            # Faust makes its consumer when it first asks for it: not yet.
            oldest_unfinished_seconds=lambda: self._relay_consumer.oldest_unfinished_seconds(),  # noqa: PLW0108
        )
        self.metrics.watch_target(
            target=self.relay.target, left_in_kafka=lambda: self.relay.left.count
        )
        self.metrics.watch_group(
            assigned_partitions=lambda: self.health.assigned_partitions,
            kafka_answers=self.health.kafka_answers,
        )
        self.metrics.watch_intake(self.health.intake_stopped_seconds)
        add_process_metrics(self.metrics.registry)
        self.stats = Stats(
            self.metrics,
            group=settings.consumer_group_id,
            url=settings.own_url,
            partitions=lambda: self._relay_consumer,  # as above: not made yet
            breaker=self.relay.breaker,
            target=self.relay.target,
        )
        self.deliveries: DeliveryBook | None = None
        self.order_lookup: OrderLookup | None = None
        self.web_server(WebService(self._make_web_server))
        self.background: list[Callable[[], Coroutine[Any, Any, None]]] = []
        """What runs beside deliveries from the start on; each ends by itself or is cancelled."""
        self._background_tasks: list[asyncio.Task[None]] = []
        self._watches: list[asyncio.Task[None]] = []
        self._shutdown_watch = ShutdownWatch()
        self.order_paid_topic = self.topic(
            settings.order_paid_topic,
            # Bytes in, bytes out: decoding in the delivery code cannot lose a poison record.
            schema=RecordBatches(),
            # Progress is kept by RelayConsumer, not by Faust's acks.
            acks=False,
        )

    def _make_web_server(self) -> WebServer:
        token = self.settings.api_token
        return WebServer(
            self.settings.web_host,
            self.settings.web_port,
            self.metrics.registry,
            self.health,
            publisher=self.fallback.publisher,
            orders=self.order_lookup,
            stats=self.stats,
            probe_now=self.relay.probe_now,
            token=token.get_secret_value() if token else None,
            names=self.settings.web_names,
            on_turned_away=self.metrics.published,
            connections=ConnectionLimits(connections=self._shares.web_connections),
            on_closed=self.metrics.web_connection_closed,
        )

    def keep_deliveries(self, book: DeliveryBook) -> None:
        """Keep what became of each order in ``book``; before the start."""
        self.deliveries = book
        self.metrics.watch_table(entries=lambda: book.entries, recovering=lambda: book.recovering)
        self.order_lookup = OrderLookup(
            book,
            self.relay.find,
            lambda: self._relay_consumer.owners(self.settings.order_paid_topic),
            self.settings.own_url,
            partition_of=partition_of,
            partition_count=self._ask_partitions,
            retention_hours=self.settings.deliveries_retention_hours,
            saved=self.fallback.find_saved,
            unread=self._unread,
        )

    async def _unread(self, partition: int) -> int | None:
        return await self._relay_consumer.unread(self.settings.order_paid_topic, partition)

    def _dead_letters(self) -> FallbackDeadLetters:
        settings = self.settings
        return FallbackDeadLetters(
            DeadLetterTopic(self.kafka_producer, settings.dlq_topic, settings.consumer_group_id),
            self.fallback.store,
            max_retry=settings.fallback_max_retry,
            on_saved=self.metrics.dead_letter_saved,
        )

    # --- starting and stopping ------------------------------------------------------------------

    async def on_start(self) -> None:
        """Start what deliveries need, before Faust starts its consumer and agents."""
        await super().on_start()
        if self.settings.deliveries_store == "rocksdb":
            _prepare(self.settings.data_dir)
        gc.set_threshold(*GC_THRESHOLDS)
        log_limit.install()
        self._obtain_file_descriptors()
        self._watch(watch_event_loop(self.metrics.loop_lagged))
        self._watch(watch_target(self.relay.target))
        self._watch(self.stats.log_regularly(self.settings.fallback_stats_interval_seconds))
        # Before Kafka is there: probes want an answer while the worker waits for it, and orders
        # that come in by HTTP are saved.
        await self.on_started_init_web_server()
        await self.fallback.start()
        if not await self.kafka_topics.wait_until_ready(self._pause):
            return  # the worker stops
        await self.kafka_producer.start()
        self.fallback.producer_started()
        self._background_tasks = [asyncio.create_task(work()) for work in self.background]
        await self.http_logger.start()
        self._watch(watch_lag(self._relay_consumer, self.kafka_producer, self.metrics, self.health))
        self._watch(end_at_standstill(self.health, self._end))
        self._watch(watch_retention(self._relay_consumer, self._ask_retention, self.metrics))
        if self.deliveries is not None:
            self._watch(self.deliveries.aging.run())
        self._watch(watch_topic_partitions(self._ask_partitions, self.metrics.topic_partitions))

    async def on_stop(self) -> None:
        """End deliveries within the grace, commit them, then let Faust stop."""
        grace = self.settings.shutdown_grace_seconds
        self._shutdown_watch.allow(grace + SHUTDOWN_TAIL_SECONDS)
        replay_stopped = asyncio.create_task(self.fallback.stop_replay(grace))
        if self._consumer is not None:
            self._relay_consumer.stop_flow()
            self.flow_control.suspend()
            self.flow_control.clear()
            await self.relay.give_back(drain_seconds=grace, attempt_seconds=0.0)
            self._shutdown_watch.allow(SHUTDOWN_TAIL_SECONDS)
            if self.deliveries is not None:
                await self.deliveries.close()
            await self._relay_consumer.commit_for_good()
        for watch in self._watches:
            watch.cancel()
        await replay_stopped
        for task in self._background_tasks:
            task.cancel()
        # Before the producer stops; what comes in by HTTP after this goes to the table.
        await self.fallback.stop_publishing(grace)
        await super().on_stop()
        # What is still on its way there nobody waits for: changes of the table, at most.
        await self.kafka_producer.stop(PRODUCER_STOP_SECONDS)
        await self.http_logger.stop()
        if self.order_lookup is not None:
            await self.order_lookup.close()

    async def on_shutdown(self) -> None:
        """Everything has stopped in time, the web server too: nothing is saved any more."""
        await self.fallback.close()
        self._shutdown_watch.cancel()
        await super().on_shutdown()

    def _obtain_file_descriptors(self) -> None:
        file_descriptors.obtain()
        shares = self._shares
        if shares.obtainable < shares.needed:
            logger.warning(
                LogLine(
                    "File descriptors are few, fewer connections are open at a time",
                    obtainable=shares.obtainable,
                    needed=shares.needed,
                    max_in_flight=shares.max_in_flight,
                    web_connections=shares.web_connections,
                )
            )

    def _watch(self, work: Coroutine[Any, Any, None]) -> None:
        self._watches.append(asyncio.create_task(work))

    async def _end(self, fault: StandsStill) -> None:
        """End the worker with status 1, also if what stands still holds up its shutdown."""
        self._shutdown_watch.allow(self.settings.shutdown_grace_seconds + SHUTDOWN_TAIL_SECONDS)
        await self._relay_consumer.crash(fault)

    async def _ask_partitions(self) -> int:
        return await self.kafka_producer.partition_count(self.settings.order_paid_topic)

    async def _ask_retention(self) -> float | None:
        return await self.kafka_topics.retention_seconds(self.settings.order_paid_topic)

    async def _pause(self, seconds: float) -> bool:
        await self.sleep(seconds)
        return bool(self.should_stop)

    def _create_directories(self) -> None:
        """Make no data directory: the tables are not Faust's to keep."""

    # --- between Faust's consumer and the relay -------------------------------------------------

    @property
    def _relay_consumer(self) -> RelayConsumer:
        return cast(RelayConsumer, self.consumer)  # RelayTransport makes no other

    async def take(self, record: Record) -> None:
        """Take a record in for delivery; waits while there is no room or no table yet."""
        book = self.deliveries
        if book is not None and not book.ready and not await book.until_ready():
            return  # its partition leaves, and is read again
        consumer = self._relay_consumer
        if consumer.claim(record) and not await self.relay.take(record):
            consumer.leave(record)

    def read_again(self, topic: str, partition: int, offset: int) -> None:
        """See ``app.delivery.left_in_kafka.Reading``."""
        self._relay_consumer.read_again(topic, partition, offset)

    def read_on(self, topic: str, partition: int, *, paused: bool) -> None:
        """See ``app.delivery.left_in_kafka.Reading``."""
        self._relay_consumer.read_on(topic, partition, paused=paused)

    def _is_delivered(self, record: Record, order_id: OrderId) -> bool:
        return self.deliveries is not None and self.deliveries.is_delivered(record, order_id)

    def _is_finished(self, topic: str, partition: int, offset: int) -> bool:
        return self._relay_consumer.is_finished(topic, partition, offset)

    def _on_finished(self, record: Record, outcome: Outcome) -> None:
        if self.deliveries is None:
            self.finish(record)
        else:
            self.deliveries.finished(record, outcome)

    def finish(self, record: Record) -> None:
        """Let a record's offset be committed."""
        self._relay_consumer.finished(record)

    async def on_partitions_leaving(self) -> None:
        """End deliveries before a rebalance: attempts may end, waits are given up."""
        attempt_seconds = min(
            self.settings.external_logger_timeout_seconds + 1.0, MAX_REBALANCE_DRAIN_SECONDS
        )
        self.health.assigned_partitions = 0
        await self.relay.give_back(drain_seconds=0.0, attempt_seconds=attempt_seconds)
        if self.deliveries is not None:
            await self.deliveries.leaving()

    def on_partitions_arriving(self, partitions: Collection[int]) -> None:
        """Let deliveries go on after a rebalance, with these partitions of the source topic."""
        self.health.assigned_partitions = len(partitions)
        if self.deliveries is not None:
            self.deliveries.arriving(partitions)
        self.relay.resume()


def create_app(settings: RelaySettings) -> RelayApp:
    """Make the application, without its agents; nothing is started or connected."""
    mode.loop.use("uvloop")
    session_seconds = settings.kafka_session_timeout_ms / 1000
    web_host = f"[{settings.web_host}]" if ":" in settings.web_host else settings.web_host
    app = RelayApp(
        settings.consumer_group_id,
        broker=[f"aiokafka://{server}" for server in settings.kafka_bootstrap_servers.split(",")],
        broker_credentials=faust_credentials(settings),
        # Repeated after a kill is at most what finished since the last commit.
        broker_commit_interval=1.0,
        broker_session_timeout=session_seconds,
        broker_heartbeat_interval=session_seconds / HEARTBEATS_PER_SESSION,
        broker_rebalance_timeout=_longest_rebalance(settings),
        broker_request_timeout=_longest_request(settings),
        broker_max_poll_interval=MAX_POLL_INTERVAL_SECONDS,
        consumer_auto_offset_reset="earliest",
        # A leader that hangs is left for the new one as soon as the metadata knows it.
        consumer_metadata_max_age_ms=10_000,
        # Faust's own producer is idle here; its default of 1,200 s would hold up the shutdown.
        producer_request_timeout=15.0,
        # A batch of at most so many records is one event; the stream holds few of them.
        broker_max_poll_records=500,
        stream_buffer_maxsize=16,
        # app.topics declares the topics; Faust's leader is not used, work is claimed instead.
        topic_allow_declare=False,
        topic_disable_leader=True,
        table_standby_replicas=0,
        TableManager=ForeignChangelogs,
        web_enabled=True,
        # Of these Faust makes a URL, in which an IPv6 address has brackets.
        web_bind=web_host,
        web_host=web_host,
        web_port=settings.web_port,
        autodiscover=False,
        worker_redirect_stdouts=False,
    )
    app.transport = RelayTransport(app.conf.broker_consumer, app)
    app.prepare(settings)
    return app


def _longest_rebalance(settings: RelaySettings) -> float:
    return max(REBALANCE_SECONDS, 2 * settings.kafka_session_timeout_ms / 1000)


def _longest_request(settings: RelaySettings) -> float:
    session_seconds = settings.kafka_session_timeout_ms / 1000
    return max(REQUEST_SECONDS, session_seconds + REQUEST_BEYOND_SESSION_SECONDS)


def _prepare(data_dir: Path) -> None:
    """Make the folder that the table is kept in, or end the start with one line."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=data_dir):
            pass
    except OSError as error:
        raise SystemExit(
            f"DATA_DIR={str(data_dir)!r} must be a folder that can be written to: {error.strerror}"
        ) from None
