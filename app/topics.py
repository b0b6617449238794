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

PROBE_SECONDS = 5.0
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

    async def wait_for_kafka(self, pause: Callable[[float], Awaitable[bool]]) -> bool:
        """Wait until a broker answers, for as long as it takes.

        Says once that Kafka is missing, and once when it is there.

        Args:
            pause: Waits the given seconds; returns ``True`` when the worker is to stop.

        Returns:
            ``False`` when the worker is to stop first.
        """
        waiting = False
        while True:
            try:
                await self.partition_counts()
            except KafkaException as error:
                if not waiting:
                    logger.error(
                        "Kafka cannot be reached at %s, trying on until it can: %s",
                        self._settings.kafka_bootstrap_servers,
                        error.args[0].str(),
                    )
                waiting = True
            else:
                if waiting:
                    logger.warning(
                        "Kafka can be reached at %s", self._settings.kafka_bootstrap_servers
                    )
                return True
            if await pause(1.0):
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
        for name, future in (self._client().create_topics(missing) if missing else {}).items():
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
