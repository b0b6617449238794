"""The two topics: waiting until Kafka is there, declaring them, and saying what looks wrong."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from app.publishing.producer import client_config
from app.settings import Settings

logger = logging.getLogger(__name__)

UNREACHABLE = (
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TIMED_OUT,
    KafkaError._RESOLVE,
    KafkaError._AUTHENTICATION,
    KafkaError._SSL,
)

PROBE_SECONDS = 5.0
RETRY_SECONDS = 1.0
# A dead letter is its record and headers: it must fit where the record just fitted. Kafka's
# default limit is 1,048,588 bytes.
DLQ_MAX_MESSAGE_BYTES = 2 * 1024 * 1024


class Topics:
    """Asks Kafka about the topics and makes the ones that are missing.

    Each call runs in a thread and takes ``PROBE_SECONDS`` at most before it says no.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._admin: AdminClient | None = None

    async def wait_until_ready(self, pause: Callable[[float], Awaitable[bool]]) -> bool:
        """Wait until Kafka answers and the topics are declared, for as long as it takes.

        Says in one line what is wrong, again when it changes, and once when all is well.

        Args:
            pause: Waits the given seconds; returns ``True`` when the worker is to stop.

        Returns:
            ``False`` when the worker is to stop first.
        """
        said = ""
        while True:
            try:
                if self._settings.kafka_declare_topics:
                    await self.declare()
                else:
                    await self.partition_counts()
            except KafkaException as error:
                problem = _problem(error, self._settings)
                if problem != said:
                    logger.error("%s; trying on until it works", problem)
                said = problem
            else:
                if said:
                    logger.warning("Kafka works at %s", self._settings.kafka_bootstrap_servers)
                return True
            if await pause(RETRY_SECONDS):
                return False

    async def declare(self) -> None:
        """Make the topics that do not exist; existing ones are never changed.

        Raises:
            KafkaException: Kafka does not let us, or does not answer.
        """
        settings = self._settings
        existing = await self.partition_counts()
        wanted = {
            settings.order_paid_topic: {},
            settings.dlq_topic: {"max.message.bytes": str(DLQ_MAX_MESSAGE_BYTES)},
        }
        missing = [
            NewTopic(
                name,
                num_partitions=settings.topic_partitions,
                replication_factor=settings.topic_replication_factor,
                config=config,
            )
            for name, config in wanted.items()
            if name not in existing
        ]
        for name, future in (
            self._client().create_topics(missing, request_timeout=PROBE_SECONDS) if missing else {}
        ).items():
            try:
                await asyncio.wrap_future(future)
            except KafkaException as error:
                if (
                    error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS
                ):  # another worker was first
                    raise
            else:
                logger.info(
                    "Declared topic %s with %d partitions, replication %d",
                    name,
                    settings.topic_partitions,
                    settings.topic_replication_factor,
                )
        for name, count in existing.items():
            if name in wanted and count < settings.topic_partitions:
                logger.warning(
                    "Topic %s has %d partitions, fewer than TOPIC_PARTITIONS=%d; it is used as it "
                    "is: at most %d workers can share it",
                    name,
                    count,
                    settings.topic_partitions,
                    count,
                )

    async def partition_counts(self) -> dict[str, int]:
        """Return the number of partitions of every topic there is.

        Raises:
            KafkaException: No broker answered.
        """
        metadata = await asyncio.to_thread(self._client().list_topics, timeout=PROBE_SECONDS)
        return {
            name: len(topic.partitions)
            for name, topic in metadata.topics.items()
            if topic.error is None
        }

    def _client(self) -> AdminClient:
        if self._admin is None:
            # The client's own log would repeat every refused connection; we say it once.
            self._admin = AdminClient(
                client_config(self._settings)
                | {"log_level": 0, "socket.connection.setup.timeout.ms": 5000}
            )
        return self._admin


def _problem(error: KafkaException, settings: Settings) -> str:
    kafka_error = error.args[0]
    servers = settings.kafka_bootstrap_servers
    if kafka_error.code() in UNREACHABLE:
        return f"Kafka cannot be reached at KAFKA_BOOTSTRAP_SERVERS={servers}: {kafka_error.str()}"
    return (
        f"Kafka at {servers} does not declare the topics (TOPIC_PARTITIONS="
        f"{settings.topic_partitions}, TOPIC_REPLICATION_FACTOR="
        f"{settings.topic_replication_factor}): {kafka_error.str()}"
    )
