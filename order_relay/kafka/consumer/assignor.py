"""Who has which partition, and where: told to every member with its assignment."""

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
    """Return the partition that Kafka's clients choose for a key, out of so many."""
    return int(murmur2(key) & 0x7FFFFFFF) % partitions


class OwnersAssignor(RoundRobinPartitionAssignor):  # type: ignore[misc] # aiokafka has no types
    """Round robin that also spreads the members' URLs.

    Kafka's group protocol carries free bytes beside each member's subscription and assignment.
    Members that say nothing there are unknown owners, nothing worse: the protocol's name and the
    partitions are those of plain round robin, so members with and without URLs share a group.
    """

    def __init__(self, own_url: str) -> None:
        """Tell the others that this member is at ``own_url``."""
        self._own_url = own_url
        self.owners: dict[TP, str] = {}
        """Base URL of each partition's owner, where it is known."""

    def metadata(self, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        """Return what this member tells the one that assigns."""
        return ConsumerProtocolMemberMetadata(
            self.version, list(topics), msgspec.json.encode({"url": self._own_url})
        )

    def assign(
        self, cluster: Any, members: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        """Assign partitions, as the member that Kafka chose to do it for all."""
        assigned = super().assign(cluster, members)
        owners = [
            (topic, partition, url)
            for member, assignment in assigned.items()
            if (url := _url_of(members[member].user_data)) is not None
            for topic, partitions in assignment.assignment
            for partition in partitions
        ]
        told = msgspec.json.encode({"owners": owners})
        return {
            member: ConsumerProtocolMemberAssignment(self.version, assignment.assignment, told)
            for member, assignment in assigned.items()
        }

    def on_assignment(self, assignment: ConsumerProtocolMemberAssignment) -> None:
        """Take up who has what."""
        try:
            told = msgspec.json.decode(assignment.user_data or b"", type=_Told)
        except msgspec.MsgspecError:
            told = _Told(())
        self.owners = {TP(topic, partition): url for topic, partition, url in told.owners}


class _Told(msgspec.Struct):
    owners: tuple[tuple[str, int, str], ...]


class _Introduction(msgspec.Struct):
    url: str


def _url_of(user_data: bytes | None) -> str | None:
    try:
        return msgspec.json.decode(user_data or b"", type=_Introduction).url
    except msgspec.MsgspecError:
        return None
