"""Assigns partitions, and tells every member the URL of each partition's owner."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.protocol import (
    ConsumerProtocolMemberAssignment,
    ConsumerProtocolMemberMetadata,
)
from aiokafka.partitioner import murmur2
from faust.types import TP


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition that Kafka's clients choose for a key, of ``partitions`` in all."""
    return int(murmur2(key) & 0x7FFFFFFF) % partitions


class OwnersAssignor(RoundRobinPartitionAssignor):  # type: ignore[misc] # aiokafka has no types
    """Round robin that also distributes the members' URLs.

    Kafka's group protocol allows user data beside each member's subscription and assignment. The
    protocol's name and the assignment are those of round robin, so that members with and without
    user data can share a group. The URLs of those without are unknown.
    """

    def __init__(self, own_url: str) -> None:
        """Give ``own_url`` as the URL of this member."""
        self._own_url = own_url
        self.owners: dict[TP, str] = {}
        """The base URL of each partition's owner, as far as it is known."""

    def metadata(self, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        """Return this member's subscription and URL."""
        return ConsumerProtocolMemberMetadata(
            self.version, list(topics), msgspec.json.encode({"url": self._own_url})
        )

    def assign(
        self, cluster: Any, members: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        """Assign partitions to all members; called in the group's leader."""
        assigned = super().assign(cluster, members)
        owners = [
            (topic, partition, url)
            for member, assignment in assigned.items()
            if (url := url_of(members[member].user_data)) is not None
            for topic, partitions in assignment.assignment
            for partition in partitions
        ]
        user_data = msgspec.json.encode({"owners": owners})
        return {
            member: ConsumerProtocolMemberAssignment(self.version, assignment.assignment, user_data)
            for member, assignment in assigned.items()
        }

    def on_assignment(self, assignment: ConsumerProtocolMemberAssignment) -> None:
        """Note the owners that come with this member's assignment."""
        try:
            owners = msgspec.json.decode(assignment.user_data or b"", type=_AssignmentData).owners
        except msgspec.MsgspecError:
            owners = ()
        self.owners = {TP(topic, partition): url for topic, partition, url in owners}


class _AssignmentData(msgspec.Struct):
    owners: tuple[tuple[str, int, str], ...]


class _MemberData(msgspec.Struct):
    url: str


def url_of(user_data: bytes | None) -> str | None:
    """Return the URL in a member's user data; None: there is none."""
    try:
        return msgspec.json.decode(user_data or b"", type=_MemberData).url
    except msgspec.MsgspecError:
        return None
