"""A request on a connection whose transport is closed, under uvloop."""

import asyncio

import pytest
import uvloop
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.metadata import MetadataRequest

from order_relay.kafka.consumer.aiokafka_patches import send


async def closed_under_way() -> None:
    """Send on a connection that was closed and does not know it yet."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        connection = AIOKafkaConnection(host, port)
        connection._reader, connection._writer = await asyncio.open_connection(host, port)
        connection._read_task = connection._create_reader_task()
        connection._versions = {3: (0, 5)}
        connection._writer.transport.abort()
        await asyncio.sleep(0)  # uvloop's transport is closed in its next turn
        with pytest.raises(KafkaConnectionError, match="closed"):
            await send(connection, MetadataRequest([]))
        assert not connection.connected()


def test_it_is_a_broken_connection() -> None:
    """Which is what the tasks of Kafka's client know: anything else ends them."""
    uvloop.run(closed_under_way())
