"""The Faust application of one consumer: its group, its stream, and what differs from Faust."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

import faust
from faust.sensors.prometheus import FaustMetrics, PrometheusMonitor
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from faust.types import TP, Message
from mode.utils.objects import cached_property
from mode.utils.queues import FlowControlEvent
from mode.utils.times import Seconds

from order_relay.kafka.auth import faust_credentials
from order_relay.kafka.consumer import RelayConsumer, RelayTransport
from order_relay.model.record import Record
from order_relay.settings import Settings as RelaySettings

# How long the group waits for its members in a rebalance, at least; and at least two sessions.
REBALANCE_SECONDS = 60.0
# Kafka notices a dead member after one session. Lost or late heartbeats must not end a session.
HEARTBEATS_PER_SESSION = 10
# How long a request may take, at least. Faust requires more than a session.
REQUEST_SECONDS = 40.0
REQUEST_BEYOND_SESSION_SECONDS = 10.0
# A worker whose intake is paused does not poll. It must stay a member however long that takes.
MAX_POLL_INTERVAL_SECONDS = 365 * 24 * 3600.0


class FaustSettings(faust.Settings):
    """Faust's settings without the environment.

    Faust lets environment variables override all settings. A stray CONSUMER_AUTO_OFFSET_RESET or
    BROKER_URL would change which records are delivered.
    """

    def getenv(self, env_name: str) -> Any:
        """Return ``None``: no setting is read from the environment."""
        return None


class FlowControl(FlowControlEvent):
    """Faust's flow control, except that resuming an active flow drops nothing.

    Faust resumes the flow twice after a rebalance, before and after its seek, and clears the
    streams' queues each time. A batch handed over in between would be dropped although its records
    are claimed, and would not be delivered before the next rebalance.
    """

    def resume(self) -> None:
        """Resume the flow. Queues are cleared only if it was suspended."""
        if not self.is_active():
            super().resume()


class PatientRecovery(Recovery):
    """Faust's recovery after an assignment, without its time-out.

    Faust waits ``broker_request_timeout`` for the seek, and treats a longer seek as a stop: the
    recovery task ends without a log line, and no record is read again.
    """

    async def _wait(self, coro: Any, timeout: Seconds | None = None) -> None:
        """Wait until it is done, the next rebalance starts, or the worker stops."""
        await super()._wait(coro)


class ForeignChangelogs(TableManager):
    """Faust's tables without their changelogs, which the relay reads and writes itself.

    Faust would subscribe the group to them. All members would have to change their assignor at the
    same time, and every partition would wait while they are read (docs/decisions/0014).
    """

    @property
    def changelog_topics(self) -> set[str]:
        """Return an empty set, so that Faust reads none."""
        return set()

    @property
    def recovery(self) -> PatientRecovery:
        """The task that resumes the flow after a rebalance."""
        if self._recovery is None:
            self._recovery = PatientRecovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return cast(PatientRecovery, self._recovery)

    async def on_start(self) -> None:
        """Start at once; Faust would wait a second for tables that are registered late."""
        await self._update_channels()
        await self.recovery.start()

    async def _update_channels(self) -> None:
        self._tables_finalized.set()
        self._tables_registered.set()


class RecordBatches(faust.Schema[Any, list[Record]]):
    """Passes batches of records to the streams without decoding."""

    def loads_key(self, app: Any, message: Message, **kwargs: Any) -> Any:
        """Return no key: a batch has none."""
        return None

    def loads_value(self, app: Any, message: Message, **kwargs: Any) -> Any:
        """Return the batch, a list of ``Record``."""
        return message.value


class RelayMonitor(PrometheusMonitor):
    """Faust's metrics without the most expensive ones per event.

    The relay counts deliveries itself. Faust normalizes its per-stream labels with a regular
    expression for each event, and its active counts never fall for streams without acks.
    """

    def on_stream_event_in(
        self, tp: TP, offset: int, stream: faust.StreamT[Any], event: faust.EventT[Any]
    ) -> dict[str, Any] | None:
        """Count the records of the batch."""
        records = len(cast(list[Record], event.value))
        self.events_total += records
        self._metrics.total_events.inc(records)
        return None


# --- the application ------------------------------------------------------------------------------


class ConsumerApp(faust.App):
    """Faust's app that reads one topic in one group."""

    Settings = FaustSettings
    own_url: str
    """Where other workers reach this one; the group's members exchange their URLs."""

    @cached_property
    def flow_control(self) -> FlowControl:
        """Stops and resumes the flow of records into the streams."""
        return FlowControl(loop=self.loop)

    @property
    def reader(self) -> RelayConsumer:
        """The consumer that reads the topic."""
        return cast(RelayConsumer, self.consumer)  # RelayTransport makes no other

    def _create_directories(self) -> None:
        """Make no data directory: Faust stores no tables."""


def faust_options(settings: RelaySettings) -> dict[str, Any]:
    """Return what all Faust applications of the worker have in common."""
    return {
        "broker": [
            f"aiokafka://{server}" for server in settings.kafka_bootstrap_servers.split(",")
        ],
        "broker_credentials": faust_credentials(settings),
        # ``Topics`` declares the topics. Workers claim work instead of electing a leader.
        "topic_allow_declare": False,
        "topic_disable_leader": True,
        "autodiscover": False,
        "worker_redirect_stdouts": False,
    }


def consumer_app(settings: RelaySettings, faust_metrics: FaustMetrics) -> ConsumerApp:
    """Make a consumer's app without its agent. Starts and connects nothing.

    Args:
        settings: The consumer's settings.
        faust_metrics: Faust's own metrics.
    """
    session_seconds = settings.kafka_session_timeout_ms / 1000
    app = ConsumerApp(
        settings.consumer_group_id,
        **faust_options(settings),
        # After a kill, records that finished since the last commit are delivered again.
        broker_commit_interval=1.0,
        broker_session_timeout=session_seconds,
        broker_heartbeat_interval=session_seconds / HEARTBEATS_PER_SESSION,
        broker_rebalance_timeout=longest_rebalance(settings),
        broker_request_timeout=longest_request(settings),
        broker_max_poll_interval=MAX_POLL_INTERVAL_SECONDS,
        consumer_auto_offset_reset="earliest",
        # If a leader hangs, fetches move to the new one when the metadata has it.
        consumer_metadata_max_age_ms=10_000,
        # A batch of at most so many records is one event. The stream buffers few events.
        broker_max_poll_records=500,
        stream_buffer_maxsize=16,
        table_standby_replicas=0,
        TableManager=ForeignChangelogs,
        web_enabled=False,
    )
    app.transport = RelayTransport(app.conf.broker_consumer, app)
    app.own_url = str(settings.own_url)
    app.monitor = RelayMonitor(metrics=faust_metrics)
    return app


def read_topic(
    app: ConsumerApp, name: str, topic: str, submit: Callable[[Record], Awaitable[None]]
) -> None:
    """Pass each record of a topic to ``submit``, in the order of offsets within a partition.

    Args:
        app: The consumer's app.
        name: The agent's name.
        topic: The topic.
        submit: Submits a record to the dispatcher. It waits while there is no room.
    """
    records = app.topic(
        topic,
        # Undecoded, since Faust drops records that it cannot decode.
        schema=RecordBatches(),
        # RelayConsumer tracks progress, not Faust's acks.
        acks=False,
    )

    async def read(stream: faust.StreamT[list[Record]]) -> None:
        async for batch in cast(faust.Stream[list[Record]], stream).noack():
            for record in batch:
                await submit(record)

    app.agent(records, name=name)(read)


def longest_rebalance(settings: RelaySettings) -> float:
    """Return how long the group waits for its members, in seconds."""
    return max(REBALANCE_SECONDS, 2 * settings.kafka_session_timeout_ms / 1000)


def longest_request(settings: RelaySettings) -> float:
    """Return how long a request to Kafka may take, in seconds."""
    session_seconds = settings.kafka_session_timeout_ms / 1000
    return max(REQUEST_SECONDS, session_seconds + REQUEST_BEYOND_SESSION_SECONDS)
