"""An address that stays while the servers behind it change, as of a load balancer.

    async with FrontDoor(cluster.bootstrap_servers) as door:
        ...                                  # door.address
        door.leads_to(another.bootstrap_servers)

It runs in the test's event loop.
"""

import asyncio
import contextlib
from typing import Self

from tests.support.kafka.ports import LOOPBACK

READ_BYTES = 65_536


class FrontDoor:
    """Passes connections on to the first of some servers.

    Attributes:
        address: Where it listens.
    """

    def __init__(self, servers: str) -> None:
        """Forward to ``servers``: ``host:port``, comma-separated."""
        self.leads_to(servers)
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, LOOPBACK)
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def leads_to(self, servers: str) -> None:
        """Forward new connections there; open ones stay."""
        self._host, _, self._port = servers.partition(",")[0].rpartition(":")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(OSError), contextlib.closing(writer):
            inner, outer = await asyncio.open_connection(self._host, self._port)
            with contextlib.closing(outer):
                ways = {
                    asyncio.create_task(_pass(reader, outer)),
                    asyncio.create_task(_pass(inner, writer)),
                }
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(READ_BYTES):
        writer.write(data)
        await writer.drain()
