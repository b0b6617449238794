"""Writing to a connection that was closed a moment ago, which uvloop takes for a fault of ours.

asyncio's own loop drops such a write, and the request fails with its connection. uvloop raises a
RuntimeError where aiokafka expects an OSError: it ended whichever of aiokafka's tasks made the
request, the one that refreshes metadata among them, for which all others then waited for ever.
"""

from __future__ import annotations

from typing import Any

from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaConnectionError

_send = AIOKafkaConnection.send


def patch_aiokafka_send() -> None:
    """Let a request on a closed connection fail in this process as one on a broken one does."""
    AIOKafkaConnection.send = send


def send(connection: Any, request: Any, expect_response: bool = True) -> Any:
    """Send a request as aiokafka does.

    Raises:
        KafkaConnectionError: The connection is broken, or closed.
    """
    try:
        return _send(connection, request, expect_response=expect_response)
    except RuntimeError as error:
        connection.close(reason=CloseReason.CONNECTION_BROKEN)
        raise KafkaConnectionError(
            f"Connection at {connection.host}:{connection.port} closed: {error}"
        ) from error
