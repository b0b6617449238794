r"""Patches of aiokafka for faults that would stop the consumer.

- A write to a connection that has just closed: asyncio's own event loop drops it, and the request
  fails with its connection. uvloop raises ``RuntimeError`` where aiokafka expects ``OSError``. That
  ended the task that made the request, such as the refresh of metadata, and all other tasks waited
  for it for ever.
- Brokers that all moved to other addresses: once aiokafka knows brokers, it asks no others for
  metadata (aio-libs/aiokafka#456), unlike Kafka's own client (KIP-899) and librdkafka.
- Brokers that refuse connections: aiokafka tries again at once, 200 times a second. A firewall may
  take that for an attack. Kafka's own client waits (KIP-144).
- Records with a header whose name is not UTF-8: Kafka allows any bytes, and clients in C or Go send
  them. aiokafka's parser raises at such a record, and its partition would wait for ever. After the
  first one the process parses with aiokafka's slower Python code, and writes such names as in a
  Python literal: ``b"\xff"`` becomes the text ``\xff``.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import Any

from aiokafka import client as aiokafka_client
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection, CloseReason, create_conn
from aiokafka.consumer import fetcher
from aiokafka.errors import KafkaConnectionError
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchPy
from aiokafka.record.memory_records import _MemoryRecordsPy

logger = logging.getLogger(__name__)

# For all known brokers, and for all bootstrap servers. A broker that drops packets would take 40 s.
ANSWER_SECONDS = 30.0
# Kafka's reconnect.backoff.ms and reconnect.backoff.max.ms; doubled with each failure.
RECONNECT_SECONDS = 0.05
MAX_RECONNECT_SECONDS = 1.0

_send = AIOKafkaConnection.send
_metadata_update = AIOKafkaClient._metadata_update


def patch_aiokafka() -> None:
    """Apply the patches of connections and metadata to all clients of this process."""
    AIOKafkaConnection.send = send
    AIOKafkaClient._metadata_update = update_metadata
    aiokafka_client.create_conn = connect


# --- closed connections -------------------------------------------------------------------------


def send(connection: Any, request: Any, expect_response: bool = True) -> Any:
    """Send a request as aiokafka does.

    Raises:
        KafkaConnectionError: The connection is broken or closed.
    """
    try:
        return _send(connection, request, expect_response=expect_response)
    except RuntimeError as error:
        connection.close(reason=CloseReason.CONNECTION_BROKEN)
        raise KafkaConnectionError(
            f"Connection at {connection.host}:{connection.port} closed: {error}"
        ) from error


# --- refused connections ------------------------------------------------------------------------

# By address: when it may be tried again, the last wait, and why it failed.
_failures: dict[tuple[str, int], tuple[float, float, str]] = {}


async def connect(host: str, port: int, **options: Any) -> Any:
    """Connect as aiokafka does, but not again at once to an address that has just failed.

    Raises:
        KafkaConnectionError: It failed a moment ago; the text is that of its last failure.
        OSError: It failed.
    """
    retry_at, waited, reason = _failures.get((host, port), (0.0, RECONNECT_SECONDS / 2.0, ""))
    if time.monotonic() < retry_at:
        raise KafkaConnectionError(reason)
    try:
        connection = await create_conn(host, port, **options)
    except OSError as error:
        wait = min(2.0 * waited, MAX_RECONNECT_SECONDS)
        retry_at = time.monotonic() + wait * random.uniform(0.8, 1.2)  # noqa: S311
        _failures[host, port] = (retry_at, wait, str(error) or repr(error))
        raise
    _failures.pop((host, port), None)
    return connection


# --- moved brokers ------------------------------------------------------------------------------


async def update_metadata(client: Any, metadata: Any, topics: Any) -> bool:
    """Update metadata as aiokafka does; ask the bootstrap servers if no known broker answers.

    ``False``: no broker answered, and the known brokers stay known.
    """
    known = _addresses(client)
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            if await _metadata_update(client, metadata, topics):
                return True
    except TimeoutError:
        pass
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await _bootstrap(client)
            answered = bool(await _metadata_update(client, metadata, topics))
    except (KafkaConnectionError, TimeoutError):
        return False
    if _addresses(client) != known:
        logger.warning("No known broker answered, the bootstrap servers named others")
    return answered


async def _bootstrap(client: Any) -> None:
    """Ask the bootstrap servers for the brokers. aiokafka forgets all topics by that.

    The coordinator would see that, take them for deleted, and begin a rebalance.
    """
    cluster = client.cluster
    partitions, listeners = cluster._partitions, cluster._listeners
    cluster._listeners = set()
    try:
        await client.bootstrap()
    finally:
        cluster._partitions, cluster._listeners = partitions, listeners


def _addresses(client: Any) -> set[tuple[str, int]]:
    return {(broker.host, broker.port) for broker in client.cluster.brokers()}


# --- header names -------------------------------------------------------------------------------


def read_any_header_name() -> None:
    """Make this process parse such records, from its next fetch on."""
    fetcher.MemoryRecords = Batches


class Batches(_MemoryRecordsPy):  # type: ignore[misc]  # aiokafka ships no types
    """The batches that a fetch returned for a partition."""

    def next_batch(self) -> Any:  # its own two arguments are constants
        """Return the next batch. One that may have headers accepts any name."""
        data = self._next_slice
        batch = super().next_batch()
        # Older formats have no headers.
        return _Batch(data) if isinstance(batch, DefaultRecordBatch) else batch


class _Batch(_DefaultRecordBatchPy):  # type: ignore[misc]
    def __iter__(self) -> _Batch:
        super().__iter__()  # decompresses
        self._buffer: _Buffer = _Buffer(self._buffer)
        return self


class _Buffer(bytearray):
    """Bytes whose slices decode with escapes instead of raising."""

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return _Slice(found) if isinstance(index, slice) else found


class _Slice(bytes):
    def decode(self, *_: Any) -> str:
        return super().decode("utf-8", "backslashreplace")
