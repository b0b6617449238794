"""Which workers are in a consumer group, and which partitions each has."""

from collections.abc import Callable, Collection
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.protocol import (
    ConsumerProtocolMemberAssignment,
    ConsumerProtocolMemberMetadata,
)
from aiokafka.errors import (
    BrokerResponseError,
    GroupAuthorizationFailedError,
    IncompatibleBrokerVersion,
    KafkaConnectionError,
)
from faust.types import TP

from order_relay.kafka import group_members
from order_relay.kafka.consumer.assignor import OwnersAssignor, partition_of
from order_relay.kafka.group_members import KEEP_SECONDS, GroupMembers
from order_relay.settings import load_settings


class Admin:
    """Groups, and how often they were asked for. A group can be an error."""

    def __init__(self, **groups: Collection[bytes] | Exception) -> None:
        self.groups = groups
        self.connections = self.closed = 0
        self.now = 0.0

    def __call__(self, **options: Any) -> "Admin":
        return self

    async def start(self) -> None:
        self.connections += 1

    async def close(self) -> None:
        self.closed += 1

    async def describe_consumer_groups(self, group_ids: list[str]) -> list[Any]:
        """One group a request, with what aiokafka makes of its answer."""
        (group,) = group_ids
        found = self.groups[group]
        if isinstance(found, BrokerResponseError):
            return [SimpleNamespace(groups=[(found.errno, group, "", "", "", [])])]
        if isinstance(found, Exception):
            raise found
        members = [("id", "client", "host", metadata, b"") for metadata in found]
        return [SimpleNamespace(groups=[(0, group, "Stable", "consumer", "roundrobin", members)])]


Asked = Callable[[Admin], GroupMembers]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """The members of the groups of a client of Kafka."""

    def ask(admin: Admin) -> GroupMembers:
        monkeypatch.setattr(group_members, "AIOKafkaAdminClient", admin)
        return GroupMembers(load_settings(), tuple(admin.groups), clock=lambda: admin.now)

    return ask


def member(url: str) -> bytes:
    """What a worker tells the group when it joins."""
    metadata = OwnersAssignor(url).metadata(["orders"])
    encoded: bytes = metadata.encode()
    return encoded


async def test_all_members_are_found_and_kept_for_a_while(asked: Asked) -> None:
    """Also those without a partition; those that are not workers are left out."""
    admin = Admin(a=[member("http://w1/"), member("http://w2/"), b"", b"\x00\x01x"], b=[])
    members = asked(admin)
    assert await members.urls() == {"a": {"http://w1/", "http://w2/"}, "b": set()}
    admin.groups["b"] = [member("http://w3/")]
    admin.now += KEEP_SECONDS - 0.1
    assert (await members.urls())["b"] == set()
    admin.now += 0.1
    assert (await members.urls())["b"] == {"http://w3/"}
    assert admin.connections == admin.closed == 2


async def test_a_refused_group_is_left_out(asked: Asked) -> None:
    """Another group, with the right to describe it, is known."""
    admin = Admin(a=GroupAuthorizationFailedError("a"), b=[member("http://w1/")])
    assert await asked(admin).urls() == {"b": {"http://w1/"}}


@pytest.mark.parametrize(
    "error",
    [
        IncompatibleBrokerVersion("too old"),
        NotImplementedError("too new"),
        KafkaConnectionError("gone"),
        OSError("gone"),
    ],
)
async def test_without_an_answer_nothing_is_known(error: Exception, asked: Asked) -> None:
    """Kafka is asked again later."""
    admin = Admin(a=error)
    members = asked(admin)
    assert await members.urls() == {}
    admin.groups["a"] = [member("http://w1/")]
    admin.now += KEEP_SECONDS - 0.1
    assert await members.urls() == {}
    admin.now += 0.1
    assert await members.urls() == {"a": {"http://w1/"}}


TOPIC = "order-paid-events"


class Cluster:
    """A cluster with one topic."""

    def partitions_for_topic(self, topic: str) -> set[int]:
        return {0, 1, 2}


def sent(metadata: Any, kind: Any) -> Any:
    """What another member receives."""
    return kind.decode(metadata.encode())


def test_every_member_learns_who_has_what() -> None:
    """The assigning member tells all, itself included."""
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
    """Members with and without URLs form one group; without a URL the owner is unknown."""
    new, old = OwnersAssignor("http://new:6066"), RoundRobinPartitionAssignor
    members = {"new": new.metadata([TOPIC]), "old": old.metadata([TOPIC])}
    ours, plain = new.assign(Cluster(), members), old.assign(Cluster(), members)
    assert new.name == old.name
    assert {name: one.assignment for name, one in ours.items()} == {
        name: one.assignment for name, one in plain.items()
    }
    new.on_assignment(ours["new"])
    assert new.owners == {TP(TOPIC, 0): "http://new:6066", TP(TOPIC, 2): "http://new:6066"}
    # A member of an older version assigned: no owner is known.
    new.on_assignment(plain["new"])
    assert new.owners == {}


def test_bytes_of_other_clients_are_ignored() -> None:
    """Other clients of the group may put anything there."""
    one = OwnersAssignor("http://one:6066")
    for stranger in (b"", b"\xff", b"{}", b'{"url": 5}', b"[]"):
        metadata = ConsumerProtocolMemberMetadata(0, [TOPIC], stranger)
        assigned = one.assign(Cluster(), {"stranger": metadata})
        one.on_assignment(assigned["stranger"])
        assert one.owners == {}
        one.on_assignment(ConsumerProtocolMemberAssignment(0, [], stranger))
        assert one.owners == {}


def test_keys_land_where_kafkas_clients_put_them() -> None:
    """Values of Kafka's own test of murmur2 (UtilsTest.testMurmur2), as partitions."""
    assert [partition_of(key, 1 << 31) for key in (b"21", b"foobar")] == [
        -973932308 & 0x7FFFFFFF,
        -790332482 & 0x7FFFFFFF,
    ]
