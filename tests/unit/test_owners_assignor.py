"""Who has which partition is told with the assignment, and takes nothing from plain round robin."""

from typing import Any

from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.protocol import (
    ConsumerProtocolMemberAssignment,
    ConsumerProtocolMemberMetadata,
)
from faust.types import TP

from order_relay.kafka.consumer.assignor import OwnersAssignor, partition_of

TOPIC = "order-paid-events"


class Cluster:
    """A cluster with one topic."""

    def partitions_for_topic(self, topic: str) -> set[int]:
        return {0, 1, 2}


def sent(metadata: Any, kind: Any) -> Any:
    """What arrives at another member, by way of the wire."""
    return kind.decode(metadata.encode())


def test_every_member_learns_who_has_what() -> None:
    """The member that assigns tells all of them, itself too."""
    one, two = OwnersAssignor("http://one:6066"), OwnersAssignor("http://two:6066")
    members = {
        name: sent(member.metadata([TOPIC]), ConsumerProtocolMemberMetadata)
        for name, member in (("a", one), ("b", two))
    }
    for name, assignment in one.assign(Cluster(), members).items():
        member = {"a": one, "b": two}[name]
        member.on_assignment(sent(assignment, ConsumerProtocolMemberAssignment))
    expected = {
        TP(TOPIC, 0): "http://one:6066",
        TP(TOPIC, 1): "http://two:6066",
        TP(TOPIC, 2): "http://one:6066",
    }
    assert one.owners == two.owners == expected


def test_the_partitions_are_those_of_round_robin() -> None:
    """Members with and without URLs form one group; who says nothing is an unknown owner."""
    new, old = OwnersAssignor("http://new:6066"), RoundRobinPartitionAssignor
    members = {"new": new.metadata([TOPIC]), "old": old.metadata([TOPIC])}
    ours, plain = new.assign(Cluster(), members), old.assign(Cluster(), members)
    assert new.name == old.name
    assert {name: one.assignment for name, one in ours.items()} == {
        name: one.assignment for name, one in plain.items()
    }
    new.on_assignment(ours["new"])
    assert new.owners == {TP(TOPIC, 0): "http://new:6066", TP(TOPIC, 2): "http://new:6066"}
    # A member of an older version assigned: nothing is known, nothing breaks.
    new.on_assignment(plain["new"])
    assert new.owners == {}


def test_bytes_of_strangers_are_no_urls() -> None:
    """Whatever another client of the group puts there is passed over."""
    one = OwnersAssignor("http://one:6066")
    for stranger in (b"", b"\xff", b"{}", b'{"url": 5}', b"[]"):
        metadata = ConsumerProtocolMemberMetadata(0, [TOPIC], stranger)
        assigned = one.assign(Cluster(), {"stranger": metadata})
        one.on_assignment(assigned["stranger"])
        assert one.owners == {}
        one.on_assignment(ConsumerProtocolMemberAssignment(0, [], stranger))
        assert one.owners == {}


def test_keys_land_where_kafkas_clients_put_them() -> None:
    """Figures of Kafka's own test of its murmur2 (UtilsTest.testMurmur2), as partitions."""
    assert [partition_of(key, 1 << 31) for key in (b"21", b"foobar")] == [
        -973932308 & 0x7FFFFFFF,
        -790332482 & 0x7FFFFFFF,
    ]
