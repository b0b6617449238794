"""The Faust application: what it is made of, and what starts and stops in which order."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, cast

import faust
import mode.loop
from faust.sensors.prometheus import FaustMetrics
from mode import Service

from app.credentials import faust_credentials
from app.dead_letter_topic import DeadLetterTopic
from app.delivery.logger_client import HttpLogger
from app.delivery.record import Record
from app.delivery.relay import Relay
from app.delivery.retry import RetryPolicy
from app.fallback import Fallback
from app.fallback_dead_letters import FallbackDeadLetters
from app.faust_overrides import FaustSettings, RelayMonitor
from app.operations import log_limit
from app.operations.fallback_table import FallbackTable
from app.operations.health import Health
from app.operations.lag import watch_lag
from app.operations.metrics import Metrics
from app.operations.web import WebServer
from app.publishing.producer import KafkaProducer
from app.settings import Settings as RelaySettings
from app.topics import Topics
from app.transport import RecordBatches, RelayConsumer, RelayTransport

logger = logging.getLogger(__name__)

# After deliveries have ended: committing, leaving the group, closing connections.
SHUTDOWN_TAIL_SECONDS = 15.0
# A rebalance waits for attempts under way, and the group for the slowest member: well under
# broker_rebalance_timeout, whatever the logger's time-out is.
MAX_REBALANCE_DRAIN_SECONDS = 20.0
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

    def prepare(self, settings: RelaySettings) -> None:
        """Make everything the worker runs; nothing is started or connected."""
        self.settings = settings
        self.metrics = Metrics()
        self.monitor = RelayMonitor(metrics=FaustMetrics.create(self.metrics.registry, "faust"))
        self.kafka_topics = Topics(settings)
        self.kafka_producer = KafkaProducer(settings)
        self.fallback = Fallback(
            settings,
            FallbackTable(settings.database_url.get_secret_value()),
            self.kafka_producer,
            self.metrics,
        )
        token = settings.external_logger_token
        self.http_logger = HttpLogger(
            settings.external_logger_url,
            timeout_seconds=settings.external_logger_timeout_seconds,
            connect_timeout_seconds=settings.external_logger_connect_timeout_seconds,
            max_connections=settings.max_in_flight,
            token=token.get_secret_value() if token else None,
            ca_file=settings.external_logger_ca_file,
            redact=lambda text: redact(text, settings.secrets),
        )
        self.relay = Relay(
            self.http_logger,
            self._dead_letters(),
            self.metrics,
            self._on_finished,
            policy=RetryPolicy(
                max_retries=settings.consumer_retry_max_attempts,
                initial_seconds=settings.consumer_retry_initial_interval_ms / 1000,
                multiplier=settings.consumer_retry_multiplier,
                max_seconds=settings.consumer_retry_max_interval_ms / 1000,
            ),
            breaker_threshold=settings.breaker_failure_threshold,
            breaker_probe_interval_seconds=settings.breaker_probe_interval_seconds,
            max_in_flight=settings.max_in_flight,
        )
        self.health = Health(
            self.relay,
            breaker_closed=lambda: self.relay.breaker.closed,
            dead_lettering=lambda: self.relay.dead_lettering,
            attempt_timeout_seconds=settings.external_logger_timeout_seconds,
            clock=time.monotonic,
        )
        self.metrics.watch(
            in_flight=lambda: self.relay.in_flight,
            held=lambda: self.relay.held,
            breaker_state=lambda: self.relay.breaker.state,
            # Faust makes its consumer when it first asks for it: not yet.
            oldest_unfinished_seconds=lambda: self._relay_consumer.oldest_unfinished_seconds(),  # noqa: PLW0108
        )
        self.web_server(WebService(self))
        self.background: list[Callable[[], Coroutine[Any, Any, None]]] = []
        """What runs beside deliveries from the start on; each ends by itself or is cancelled."""
        self._background_tasks: list[asyncio.Task[None]] = []
        self._lag_task: asyncio.Task[None] | None = None
        self._shutdown_watch: threading.Timer | None = None
        self.order_paid_topic = self.topic(
            settings.order_paid_topic,
            # Bytes in, bytes out: decoding in the delivery code cannot lose a poison record.
            schema=RecordBatches(),
            # Progress is kept by RelayConsumer, not by Faust's acks.
            acks=False,
        )

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
        gc.set_threshold(*GC_THRESHOLDS)
        log_limit.install()
        # Before Kafka is there: probes want an answer while the worker waits for it, and orders
        # that come in by HTTP are saved.
        await self.on_started_init_web_server()
        await self.fallback.start()
        if not await self.kafka_topics.wait_until_ready(self._pause):
            return  # the worker stops
        await self.kafka_producer.start()
        self._background_tasks = [asyncio.create_task(work()) for work in self.background]
        await self.http_logger.start()
        self._lag_task = asyncio.create_task(
            watch_lag(self._relay_consumer, self.kafka_producer, self.metrics, self.health)
        )

    async def on_stop(self) -> None:
        """End deliveries within the grace, commit them, then let Faust stop."""
        grace = self.settings.shutdown_grace_seconds
        self._watch_shutdown(grace + SHUTDOWN_TAIL_SECONDS)
        replay_stopped = asyncio.create_task(self.fallback.stop_replay(grace))
        if self._consumer is not None:
            self._relay_consumer.stop_flow()
            self.flow_control.suspend()
            self.flow_control.clear()
            await self.relay.give_back(drain_seconds=grace, attempt_seconds=0.0)
            self._watch_shutdown(SHUTDOWN_TAIL_SECONDS)
            await self._relay_consumer.commit_before_leaving()
        if self._lag_task is not None:
            self._lag_task.cancel()
        await replay_stopped
        for task in self._background_tasks:
            task.cancel()
        # Before the producer stops; what comes in by HTTP after this goes to the table.
        await self.fallback.stop_publishing(grace)
        await super().on_stop()
        await self.kafka_producer.stop()
        await self.http_logger.stop()

    async def on_shutdown(self) -> None:
        """Everything has stopped in time, the web server too: nothing is saved any more."""
        await self.fallback.close()
        if self._shutdown_watch is not None:
            self._shutdown_watch.cancel()
        await super().on_shutdown()

    def _watch_shutdown(self, seconds: float) -> None:
        if self._shutdown_watch is not None:
            self._shutdown_watch.cancel()
        self._shutdown_watch = _end_process_after(seconds)

    async def _pause(self, seconds: float) -> bool:
        await self.sleep(seconds)
        return bool(self.should_stop)

    def _create_directories(self) -> None:
        """Make no data directory: there are no tables to keep in it."""

    # --- between Faust's consumer and the relay -------------------------------------------------

    @property
    def _relay_consumer(self) -> RelayConsumer:
        return cast(RelayConsumer, self.consumer)  # RelayTransport makes no other

    async def take(self, record: Record) -> None:
        """Take a record in for delivery; waits while there is no room."""
        if self._relay_consumer.claim(record):
            await self.relay.take(record)

    def _on_finished(self, record: Record) -> None:
        self._relay_consumer.finished(record)

    async def on_partitions_leaving(self) -> None:
        """End deliveries before a rebalance: attempts may end, waits are given up."""
        attempt_seconds = min(
            self.settings.external_logger_timeout_seconds + 1.0, MAX_REBALANCE_DRAIN_SECONDS
        )
        self.health.assigned_partitions = 0
        await self.relay.give_back(drain_seconds=0.0, attempt_seconds=attempt_seconds)

    def on_partitions_arriving(self, partitions: int) -> None:
        """Let deliveries go on after a rebalance."""
        self.health.assigned_partitions = partitions
        self.relay.resume()


class WebService(Service):
    """The web server as Faust starts and stops it, in place of Faust's own."""

    def __init__(self, app: RelayApp, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._app = app
        self._server: WebServer | None = None

    async def on_start(self) -> None:
        """Serve, or end the start with one line."""
        app = self._app
        host, port = app.conf.web_bind, app.conf.web_port
        token = app.settings.api_token
        self._server = WebServer(
            host,
            port,
            app.metrics.registry,
            app.health,
            publisher=app.fallback.publisher,
            token=token.get_secret_value() if token else None,
        )
        try:
            await self._server.start()
        except OSError as error:
            raise SystemExit(
                f"cannot serve on WEB_HOST={host} WEB_PORT={port}: {error.strerror or error}"
            ) from None

    async def on_stop(self) -> None:
        """Stop serving."""
        if self._server is not None:
            await self._server.stop()


def create_app(settings: RelaySettings) -> RelayApp:
    """Make the application, without its agents; nothing is started or connected."""
    mode.loop.use("uvloop")
    app = RelayApp(
        settings.consumer_group_id,
        broker=[f"aiokafka://{server}" for server in settings.kafka_bootstrap_servers.split(",")],
        broker_credentials=faust_credentials(settings),
        # Repeated after a kill is at most what finished since the last commit.
        broker_commit_interval=1.0,
        broker_session_timeout=30.0,
        broker_heartbeat_interval=3.0,
        broker_rebalance_timeout=60.0,
        # At least the session's time-out, says Faust.
        broker_request_timeout=40.0,
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
        web_enabled=True,
        web_bind=settings.web_host,
        web_host=settings.web_host,
        web_port=settings.web_port,
        autodiscover=False,
        worker_redirect_stdouts=False,
    )
    app.transport = RelayTransport(app.conf.broker_consumer, app)
    app.prepare(settings)
    return app


def redact(text: str, secrets: tuple[str, ...]) -> str:
    """Replace secrets in text that comes from outside."""
    for secret in sorted(secrets, key=len, reverse=True):  # one may be part of another
        text = text.replace(secret, "[redacted]")
    return text


def _end_process_after(seconds: float) -> threading.Timer:
    """End the process if the shutdown overruns: a client that waits for a dead broker would.

    Safe at any moment: what is not committed is delivered again.
    """

    def end() -> None:
        logger.critical("Shutdown took over %.0f s: ending the process", seconds)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    return timer
