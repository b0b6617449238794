"""Which workers are in a consumer group, as Kafka says it."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import pytest
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    IncompatibleBrokerVersion,
    KafkaConnectionError,
)

from order_relay.kafka.consumer.assignor import OwnersAssignor
from order_relay.kafka.group_members import KEEP_SECONDS, NOT_SUPPORTED_SECONDS, GroupMembers


class Admin:
    """Groups, and how often they were asked for. A group can be an error."""

    def __init__(self, **groups: Collection[bytes] | Exception) -> None:
        self.groups = groups
        self.connections = 0
        self.now = 0.0

    @asynccontextmanager
    async def connect(self) -> AsyncIterator["Admin"]:
        self.connections += 1
        yield self

    async def members(self, group: str) -> Collection[bytes]:
        found = self.groups[group]
        if isinstance(found, Exception):
            raise found
        return found

    def asked(self) -> GroupMembers:
        return GroupMembers(tuple(self.groups), self.connect, clock=lambda: self.now)


def member(url: str) -> bytes:
    """What a worker tells the group of itself when it joins."""
    metadata = OwnersAssignor(url).metadata(["orders"])
    encoded: bytes = metadata.encode()
    return encoded


async def test_all_members_are_found_and_kept_for_a_while() -> None:
    """Those without a partition, too; members that are no workers are left out."""
    admin = Admin(a=[member("http://w1/"), member("http://w2/"), b"", b"\x00\x01x"], b=[])
    members = admin.asked()
    assert await members.urls() == {"a": {"http://w1/", "http://w2/"}, "b": set()}
    admin.groups["b"] = [member("http://w3/")]
    admin.now += KEEP_SECONDS - 0.1
    assert (await members.urls())["b"] == set()
    admin.now += 0.1
    assert (await members.urls())["b"] == {"http://w3/"}
    assert admin.connections == 2


async def test_a_refused_group_is_left_out() -> None:
    """The right to describe one group says nothing of another."""
    admin = Admin(a=GroupAuthorizationFailedError("a"), b=[member("http://w1/")])
    assert await admin.asked().urls() == {"b": {"http://w1/"}}


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (IncompatibleBrokerVersion("too old"), NOT_SUPPORTED_SECONDS),
        (NotImplementedError("too new"), NOT_SUPPORTED_SECONDS),
        (KafkaConnectionError("gone"), KEEP_SECONDS),
        (OSError("gone"), KEEP_SECONDS),
    ],
)
async def test_without_an_answer_nothing_is_known(error: Exception, seconds: float) -> None:
    """It is asked again after some time, and after a longer one where brokers cannot answer."""
    admin = Admin(a=error)
    members = admin.asked()
    assert await members.urls() == {}
    admin.groups["a"] = [member("http://w1/")]
    admin.now += seconds - 0.1
    assert await members.urls() == {}
    admin.now += 0.1
    assert await members.urls() == {"a": {"http://w1/"}}
