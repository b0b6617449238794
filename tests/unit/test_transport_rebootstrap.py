"""Who is asked for metadata when no known broker answers; the network is made by hand."""

import asyncio

import pytest
from aiokafka.cluster import ClusterMetadata
from aiokafka.errors import KafkaConnectionError
from aiokafka.structs import BrokerMetadata

from order_relay.kafka.consumer import aiokafka_patches
from tests.support.virtual_time import virtual_time

OLD, NEW = BrokerMetadata(1, "old", 9092, None), BrokerMetadata(1, "new", 9092, None)


class Client:
    """A client that knows one broker, in a network where some hosts answer and some hang."""

    def __init__(self, *answering: str, hanging: tuple[str, ...] = ()) -> None:
        self.answering, self.hanging = answering, hanging
        self.asked: list[str] = []
        self.cluster = ClusterMetadata()
        self.cluster._brokers = {1: OLD}

    async def ask(self, host: str) -> bool:
        """Ask a host."""
        self.asked.append(host)
        if host in self.hanging:
            await asyncio.sleep(40)
        return host in self.answering

    async def bootstrap(self) -> None:
        """Ask the one bootstrap server for the brokers, as aiokafka does."""
        if not await self.ask("front"):
            raise KafkaConnectionError("Unable to bootstrap")
        self.cluster._brokers = {1: NEW if "new" in self.answering else OLD}


async def ask_known(client: Client, metadata: ClusterMetadata, topics: set[str]) -> bool:
    """Ask the brokers that a client knows, until one answers, as aiokafka does."""
    return any([await client.ask(broker.host) for broker in client.cluster.brokers()])


@pytest.mark.parametrize(
    ("answering", "hanging", "asked", "answered", "seconds"),
    [
        (("old", "front"), (), ["old"], True, 0),
        (("front", "new"), (), ["old", "front", "new"], True, 0),
        (("front", "new"), ("old",), ["old", "front", "new"], True, 30),
        (("front",), (), ["old", "front", "old"], False, 0),
        ((), (), ["old", "front"], False, 0),
        ((), ("old", "front"), ["old", "front"], False, 60),
    ],
    ids=["known", "moved", "moved, packets vanish", "known by front only", "outage", "silence"],
)
@virtual_time
async def test_the_bootstrap_servers_say_where_brokers_are_now(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    answering: tuple[str, ...],
    hanging: tuple[str, ...],
    asked: list[str],
    answered: bool,
    seconds: float,
) -> None:
    """They are asked if no known broker answers, and known brokers stay known in an outage."""
    monkeypatch.setattr(aiokafka_patches, "_metadata_update", ask_known)
    client, started = Client(*answering, hanging=hanging), asyncio.get_running_loop().time()
    assert await aiokafka_patches.update_metadata(client, client.cluster, set()) is answered
    assert client.asked == asked
    assert client.cluster.brokers() == {NEW if "new" in asked else OLD}
    assert asyncio.get_running_loop().time() == started + seconds
    assert ("No known broker answered" in caplog.text) is ("new" in asked)
