"""Waits for Kafka at the start, declares the topics, and reports problems with either."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Sequence

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (  # type: ignore[attr-defined] # documented, not re-exported
    AdminClient,
    ClusterMetadata,
    ConfigResource,
    ResourceType,
)
from confluent_kafka.cimpl import NewTopic

from order_relay.errors import AccessTokenUnavailable, KafkaUnavailable
from order_relay.kafka.client_config import UNREACHABLE, client_config, require_access_token
from order_relay.kafka.diagnosis import diagnose_connection
from order_relay.logs.log_line import LogLine
from order_relay.settings import Settings

logger = logging.getLogger(__name__)

PROBE_SECONDS = 5.0
# For ten seconds, in which every broker should know of a topic that another one has made.
NEW_TOPIC_TRIES = 100
RIGHTS_SECONDS = 3.0
RETRY_SECONDS = 1.0
REFUSED = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED)
# A dead letter is its record plus headers, so it needs more room than the record. Kafka's default
# limit is 1,048,588 bytes.
DLQ_CONFIG = {"max.message.bytes": str(2 * 1024 * 1024)}
# Compaction keeps the newest entry of each order until its tombstone. Segments roll every hour,
# since Kafka does not compact the active segment.
# Its entries are sent in batches of 1 MB.
CHANGELOG_CONFIG = {
    "cleanup.policy": "compact",
    "segment.ms": str(3_600_000),
    "max.message.bytes": str(2 * 1024 * 1024),
}


class Topics:
    """Describes topics, and creates missing ones.

    Each request takes ``PROBE_SECONDS`` at most, and does not block the event loop.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._admin: AdminClient | None = None
        self._refusal = ""

    async def wait_until_ready(
        self, pause: Callable[[float], Awaitable[bool]], consumer: Settings | None = None
    ) -> bool:
        """Wait until Kafka answers and a consumer's topics exist; ``False`` if the worker stops.

        Logs a problem when it appears or changes, and once when it is over.

        Args:
            pause: Waits the given seconds; returns ``True`` when the worker stops.
            consumer: The consumer's settings; ``None``: only wait for Kafka.
        """
        declares = consumer is not None and self._settings.kafka_declare_topics
        logged = ""
        while True:
            try:
                await (self.declare(consumer) if declares and consumer else self.partition_counts())
            except (KafkaException, AccessTokenUnavailable) as error:
                problem = await self.explain(error)
                if problem != logged:
                    logger.error("%s; retrying until it works", problem)
                logged = problem
            else:
                if logged:
                    logger.warning("Kafka works at %s", self._settings.kafka_bootstrap_servers)
                return True
            if await pause(RETRY_SECONDS):
                return False

    async def declare(self, settings: Settings) -> None:
        """Create the topics of a consumer that do not exist. Never changes existing ones.

        Args:
            settings: The consumer's settings.

        Raises:
            KafkaException: Kafka refuses, or does not answer.
            AccessTokenUnavailable: There is no access token.
        """
        existing = await self.partition_counts()
        width = settings.topic_partitions
        for name, config in ((settings.order_paid_topic, {}), (settings.dlq_topic, DLQ_CONFIG)):
            if name not in existing:
                await self._create(name, width, config)
            elif existing[name] < width:
                logger.warning(
                    "Topic %s has %d partitions, fewer than TOPIC_PARTITIONS=%d; it is used as it "
                    "is: at most %d workers can share it",
                    name,
                    existing[name],
                    width,
                    existing[name],
                )
        changelog = settings.deliveries_changelog_topic
        if settings.deliveries_store == "off" or changelog in existing:
            return
        try:
            # The same partitions as the source: an entry is in the partition of its record.
            source = settings.order_paid_topic
            count = existing.get(source) or await self._partition_count(source) or width
            await self._create(changelog, count, CHANGELOG_CONFIG)
        except KafkaException as error:
            if error.args[0].code() in UNREACHABLE:
                raise
            logger.error(  # without the right to create it deliveries still start
                LogLine(
                    "Table deliveries: its changelog is not made by Kafka; deliveries go on, "
                    "orders are forgotten with the worker",
                    topic=changelog,
                    detail=error.args[0].str(),
                )
            )

    async def _partition_count(self, topic: str) -> int | None:
        """Return the number of partitions of a topic that a broker may not know of yet."""
        for _ in range(NEW_TOPIC_TRIES):
            if (count := (await self.partition_counts()).get(topic)) is not None:
                return count
            await asyncio.sleep(0.1)
        return None

    async def _create(self, name: str, partitions: int, config: dict[str, str]) -> None:
        replication = self._settings.topic_replication_factor
        topic = NewTopic(name, partitions, replication, config=config)
        made = self._client().create_topics([topic], request_timeout=PROBE_SECONDS)
        try:
            await asyncio.wrap_future(made[name])
        except KafkaException as error:
            # Another worker has created it meanwhile.
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
        else:
            logger.info(
                "Declared topic %s with %d partitions, replication %d",
                name,
                partitions,
                replication,
            )

    async def partition_counts(self) -> dict[str, int]:
        """Return the number of partitions of each existing topic.

        Raises:
            KafkaException: No broker answered.
            AccessTokenUnavailable: There is no access token.
        """
        metadata = await self.cluster()
        return {
            name: len(topic.partitions)
            for name, topic in metadata.topics.items()
            if topic.error is None
        }

    async def retention_seconds(self, topic: str) -> float | None:
        """Return how long Kafka keeps a topic's records, in seconds; ``None``: for ever.

        Raises:
            KafkaUnavailable: No broker answered.
            KafkaException: Kafka refuses to describe the topic.
            AccessTokenUnavailable: There is no access token.
        """
        resource = ConfigResource(ResourceType.TOPIC, topic)
        asked = self._client().describe_configs([resource], request_timeout=PROBE_SECONDS)
        try:
            found = await asyncio.wrap_future(asked[resource])
        except KafkaException as error:
            if error.args[0].code() not in UNREACHABLE:
                raise
            servers = self._settings.kafka_bootstrap_servers
            raise KafkaUnavailable(servers, error.args[0].str()) from error
        retention_ms = int(found["retention.ms"].value)
        deletes = "delete" in found["cleanup.policy"].value
        return retention_ms / 1000 if deletes and retention_ms >= 0 else None

    async def cluster(self) -> ClusterMetadata:
        """Return the brokers and topics; raises as ``partition_counts``."""
        self._refusal = ""
        return await asyncio.to_thread(lambda: self._client().list_topics(timeout=PROBE_SECONDS))

    async def allowed(self, topics: Sequence[str], groups: Sequence[str]) -> dict[str, set[str]]:
        """Return our rights on topics and groups, such as READ, by name.

        Those that Kafka does not tell are left out.
        """
        asked = self._client().describe_topics(
            TopicCollection(list(topics)),
            include_authorized_operations=True,
            request_timeout=RIGHTS_SECONDS,
        ) | self._client().describe_consumer_groups(
            list(groups), include_authorized_operations=True, request_timeout=RIGHTS_SECONDS
        )
        found: dict[str, set[str]] = {}
        for name, future in asked.items():
            try:
                operations = (await asyncio.wrap_future(future)).authorized_operations
            except KafkaException as error:
                if error.args[0].code() in REFUSED:
                    found[name] = set()
                continue
            if operations is not None:
                found[name] = {operation.name for operation in operations}
        return found

    def _client(self) -> AdminClient:
        if self._admin is None:
            settings = self._settings
            require_access_token(settings)
            # The client would log every refused connection. ``wait_until_ready`` logs one line.
            self._admin = AdminClient(
                client_config(settings)
                | {
                    "log_level": 0,
                    "socket.connection.setup.timeout.ms": 5000,
                    "error_cb": self._on_error,
                }
            )
        return self._admin

    def _on_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._AUTHENTICATION:  # names the mechanisms that brokers support
            # Without the broker and the duration, which differ for the same problem.
            self._refusal = re.sub(r"^\S+/(bootstrap|\d+): | \(after .*", "", error.str())

    async def explain(self, error: KafkaException | AccessTokenUnavailable) -> str:
        """Return on one line what is wrong, and the setting to look at."""
        settings = self._settings
        servers = settings.kafka_bootstrap_servers
        if isinstance(error, AccessTokenUnavailable):
            return f"Kafka cannot be asked at KAFKA_BOOTSTRAP_SERVERS={servers}: {error}"
        kafka_error = error.args[0]
        if kafka_error.code() in UNREACHABLE:
            if self._admin is not None:
                self._admin.poll(0)
            reason = (
                await diagnose_connection(settings, PROBE_SECONDS)
                or self._refusal
                or kafka_error.str()
            )
            return f"Kafka cannot be reached at KAFKA_BOOTSTRAP_SERVERS={servers}: {reason}"
        return (
            f"Kafka at {servers} does not declare the topics (TOPIC_PARTITIONS="
            f"{settings.topic_partitions}, TOPIC_REPLICATION_FACTOR="
            f"{settings.topic_replication_factor}): {kafka_error.str()}"
        )
