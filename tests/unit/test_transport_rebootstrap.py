"""Who is asked for metadata when no known broker answers; the network is made by hand."""

import asyncio
from typing import Any

import pytest
from aiokafka.client import ConnectionGroup
from aiokafka.cluster import ClusterMetadata
from aiokafka.structs import BrokerMetadata

from order_relay.kafka.consumer import aiokafka_patches
from tests.support.virtual_time import virtual_time

OLD, NEW = BrokerMetadata(1, "old", 9092, None), BrokerMetadata(1, "new", 9092, None)


class Connection:
    """An open connection."""

    closed = False

    def close(self) -> None:
        """Note it."""
        self.closed = True


class Client:
    """A client that knows one broker, in a network where some hosts answer."""

    hosts = (("front", 9092, 0), ("door", 9092, 0))

    def __init__(self, *answering: str) -> None:
        self.answering = answering
        self.hanging: tuple[str, ...] = ()
        self.asked: list[str] = []
        self.cluster = ClusterMetadata()
        self.cluster._brokers = {1: OLD}
        self._conns: dict[Any, Connection] = {(1, ConnectionGroup.DEFAULT): Connection()}


async def ask(client: Client, metadata: ClusterMetadata, topics: set[str]) -> bool:
    """Ask the brokers of a client as aiokafka does: each that it knows, until one answers."""
    for broker in sorted(client.cluster.brokers(), key=lambda one: client.hosts[0][0] != one.host):
        client.asked.append(broker.host)
        if broker.host in client.hanging:
            await asyncio.sleep(40)
        if broker.host in client.answering:
            client._conns[broker.nodeId, ConnectionGroup.DEFAULT] = Connection()
            metadata._brokers = {1: NEW if broker.host != "old" else OLD}
            return True
    return False


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the made network answer."""
    monkeypatch.setattr(aiokafka_patches, "_metadata_update", ask)


async def test_a_known_broker_that_answers_is_enough() -> None:
    """The bootstrap servers are for when none does."""
    client = Client("old", "front")
    assert await aiokafka_patches.update_metadata(client, client.cluster, set())
    assert client.asked == ["old"]


async def test_the_bootstrap_servers_say_where_brokers_are_now() -> None:
    """Their own connections are for the question alone."""
    client = Client("door")
    assert await aiokafka_patches.update_metadata(client, client.cluster, set())
    assert client.asked == ["old", "front", "door"]
    assert client.cluster.brokers() == {NEW}
    assert list(client._conns) == [(1, ConnectionGroup.DEFAULT)]


async def test_known_brokers_stay_known_while_nothing_answers() -> None:
    """In an outage those come back that went."""
    client = Client()
    assert not await aiokafka_patches.update_metadata(client, client.cluster, set())
    assert client.cluster.brokers() == {OLD}
    client.answering = ("old",)
    assert await aiokafka_patches.update_metadata(client, client.cluster, set())
    assert client.asked == ["old", "front", "door", "old"]


@virtual_time
async def test_known_brokers_that_hang_do_not_keep_the_bootstrap_servers_waiting() -> None:
    """Where packets vanish no connection is refused."""
    client = Client("front")
    client.cluster._brokers = {number: OLD._replace(nodeId=number) for number in range(20)}
    client.hanging = ("old",)
    assert await aiokafka_patches.update_metadata(client, client.cluster, set())
    assert client.asked == ["old", "front"]
    assert client.cluster.brokers() == {NEW}


@virtual_time
async def test_known_brokers_stay_known_while_the_bootstrap_servers_hang() -> None:
    """And are asked again soon."""
    client = Client()
    client.hanging = ("old", "front")
    assert not await aiokafka_patches.update_metadata(client, client.cluster, set())
    assert client.asked == ["old", "front"]
    assert client.cluster.brokers() == {OLD}
    assert asyncio.get_running_loop().time() == 2 * aiokafka_patches.ANSWER_SECONDS


async def test_a_question_for_somebody_else_changes_nothing_known() -> None:
    """Aiokafka also fills metadata apart from its own."""
    client, apart = Client("front"), ClusterMetadata()
    assert await aiokafka_patches.update_metadata(client, apart, set())
    assert client.cluster.brokers() == {OLD}
    assert apart.brokers() == {NEW}
