"""Asks a Kafka cluster about itself, independent of the code under test."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from confluent_kafka import ElectionType, KafkaError, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined] # documented, not re-exported
    AdminClient,
    ClusterMetadata,
    NewTopic,
)

from tests.support.waiting import wait_until

ASK_SECONDS = 3.0
ANSWER_LIMIT_SECONDS = 60.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PartitionState:
    """One partition as the controller sees it; `leader` is None while there is none."""

    topic: str
    partition: int
    leader: int | None
    replicas: frozenset[int]
    in_sync: frozenset[int]


class ClusterView:
    """Questions to a cluster by Kafka's admin protocol.

    A request is repeated while the cluster cannot answer: brokers here are killed and frozen, and
    any request may meet one of those. After ANSWER_LIMIT_SECONDS a TimeoutError is raised.
    """

    _admin: AdminClient

    def connect(self, bootstrap_servers: str) -> None:
        """Ask this cluster from now on."""
        config: dict[str, str | int | float | bool] = {
            "bootstrap.servers": bootstrap_servers,
            # Brokers come back within a second here; the default backs off to 10 s.
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 250,
            "socket.timeout.ms": int(ASK_SECONDS * 1000),
            "log_level": 0,  # it would report every broker that a test has killed
        }
        self._admin = AdminClient(config)

    def partitions(self) -> list[PartitionState] | None:
        """Every partition of every topic, internal ones too; None without an answer."""
        metadata = self._metadata()
        if metadata is None:
            return None
        return [
            PartitionState(
                topic=name,
                partition=number,
                leader=state.leader if state.leader >= 0 else None,
                replicas=frozenset(state.replicas),
                in_sync=frozenset(state.isrs),
            )
            for name, topic in metadata.topics.items()
            for number, state in topic.partitions.items()
        ]

    def brokers(self) -> frozenset[int]:
        """Ids of the brokers in Kafka's metadata; empty without an answer."""
        metadata = self._metadata()
        return frozenset() if metadata is None else frozenset(metadata.brokers)

    def leader_of(self, topic: str, partition: int = 0, *, other_than: int | None = None) -> int:
        """The broker that leads a partition, waiting for one if there is none.

        Args:
            topic: An existing topic.
            partition: One of its partitions.
            other_than: A broker just killed or frozen: wait until another one leads.
        """

        def leader() -> int | None:
            for state in self.partitions() or ():
                if (state.topic, state.partition) == (topic, partition):
                    return None if state.leader in (None, other_than) else state.leader
            return None

        return self._answer(leader, f"a leader for {topic}-{partition} that is not {other_than}")

    def create_topic(
        self,
        name: str,
        partitions: int = 3,
        replication: int = 3,
        configs: Mapping[str, str] | None = None,
    ) -> None:
        """Create a topic; wait until each of its partitions is led and has all replicas in sync."""
        topic = NewTopic(name, partitions, replication, config=dict(configs or {}))

        def created() -> bool:
            try:
                self._admin.create_topics([topic], request_timeout=ASK_SECONDS)[name].result()
            except KafkaException as failure:
                # An earlier request, whose answer was lost, created it.
                return _code(failure) == KafkaError.TOPIC_ALREADY_EXISTS or _again(failure)
            return True

        def in_place() -> bool:
            states = [s for s in self.partitions() or () if s.topic == name]
            return len(states) == partitions and all(
                state.leader is not None and state.in_sync == state.replicas for state in states
            )

        self._answer(created, f"creation of topic {name}")
        self._answer(in_place, f"all replicas of topic {name}")

    def elect_preferred_leaders(self) -> None:
        """Let each partition be led by the first of its replicas, as Kafka does every 5 minutes.

        When brokers die, the others lead all of them. All brokers must run.
        """

        def elected() -> bool:
            try:
                # All that another replica leads; the answer is empty when there are none.
                # (It ignores request_timeout; the socket's is the same.)
                found = self._admin.elect_leaders(ElectionType.PREFERRED).result()
            except KafkaException as failure:
                _again(failure)
                return False
            return not any(found.values())

        def known() -> bool:
            # A broker may hear of it a moment later.
            metadata = self._metadata()
            return metadata is not None and all(
                state.leader == state.replicas[0]
                for topic in metadata.topics.values()
                for state in topic.partitions.values()
            )

        self._answer(elected, "the preferred leaders")
        self._answer(known, "the preferred leaders to be known")

    def create_offsets_topic(self) -> None:
        """Ask for a group: Kafka creates the internal topic of offsets for the first question."""

        def answered() -> bool:
            asked = self._admin.describe_consumer_groups(["any"], request_timeout=ASK_SECONDS)
            try:
                asked["any"].result()
            except KafkaException as failure:
                return _code(failure) == KafkaError.GROUP_ID_NOT_FOUND or _again(failure)
            return True

        self._answer(answered, "a group's coordinator")

    def _metadata(self) -> ClusterMetadata | None:
        try:
            return self._admin.list_topics(timeout=ASK_SECONDS)
        except KafkaException as failure:
            _again(failure)
            return None

    def _answer(self, ask: Callable[[], T | None], what: str) -> T:
        return wait_until(ask, limit=ANSWER_LIMIT_SECONDS, what=what)


def _code(failure: KafkaException) -> int:
    code: int = failure.args[0].code()
    return code


# Errors of a broker while it, or its partition, stops or starts.
_PASSING = frozenset(
    {
        KafkaError._TIMED_OUT,
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._WAIT_COORD,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.NOT_COORDINATOR,
        KafkaError.NOT_CONTROLLER,
        KafkaError.NETWORK_EXCEPTION,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.INVALID_REPLICATION_FACTOR,  # fewer brokers registered than replicas asked for
    }
)


def _again(failure: KafkaException) -> bool:
    """Return False, for "ask again", unless the failure is permanent; that one is raised."""
    if _code(failure) in _PASSING:
        return False
    raise failure
