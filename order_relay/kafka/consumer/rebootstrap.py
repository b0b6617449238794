"""Brokers that all came back under other addresses, which aiokafka would never find.

Once it knows brokers aiokafka asks no others for metadata (aio-libs/aiokafka#456), unlike Kafka's
own client (KIP-899) and librdkafka: with none of them at its address it would wait for ever.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.structs import BrokerMetadata

logger = logging.getLogger(__name__)

# For all known brokers, and for all bootstrap servers: where packets vanish each would take 40 s.
ANSWER_SECONDS = 30.0

_metadata_update = AIOKafkaClient._metadata_update


def ask_bootstrap_servers_again() -> None:
    """Let clients in this process ask the bootstrap servers where no known broker answers."""
    AIOKafkaClient._metadata_update = update_metadata


async def update_metadata(client: Any, metadata: Any, topics: Any) -> bool:
    """Update metadata as aiokafka does, from the bootstrap servers where no known broker answers.

    Returns:
        Whether one of either answered. If none did, the known brokers stay known.
    """
    if await _ask(client, metadata, topics):
        return True
    cluster = client.cluster
    known = cluster._brokers
    if not known:
        return False
    cluster._bootstrap_brokers = {
        f"bootstrap-{number}": BrokerMetadata(f"bootstrap-{number}", host, port, None)
        for number, (host, port, _) in enumerate(client.hosts)
    }
    cluster._brokers = {}  # aiokafka then takes those for the brokers
    try:
        if not await _ask(client, metadata, topics):
            return False
    finally:
        if not cluster._brokers:
            cluster._brokers = known
        for node, group in [one for one in client._conns if one[0] in cluster._bootstrap_brokers]:
            client._conns.pop((node, group)).close()
    if _addresses(cluster._brokers) != _addresses(known):
        logger.warning("No known broker answered, the bootstrap servers named others")
    return True


async def _ask(client: Any, metadata: Any, topics: Any) -> bool:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            return bool(await _metadata_update(client, metadata, topics))
    except TimeoutError:
        return False


def _addresses(brokers: Any) -> set[tuple[str, int]]:
    """Return where brokers listen."""
    return {(broker.host, broker.port) for broker in brokers.values()}
