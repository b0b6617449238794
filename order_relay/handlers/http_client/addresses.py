"""Where a host is, and a TCP connection to it."""

from __future__ import annotations

import asyncio
import socket

import aiohappyeyeballs
from aiohappyeyeballs import AddrInfoType

# Many connections are made at once, and a name that moves is to be followed soon.
KNOWN_SECONDS = 10.0
# RFC 8305: how soon the next address is tried beside one that does not answer.
HAPPY_EYEBALLS_SECONDS = 0.25


class Addresses:
    """The addresses of one host, asked for at most every 10 s."""

    def __init__(self, host: str, port: int) -> None:
        """Know nothing yet."""
        self.host = host
        self.port = port
        self._known: list[AddrInfoType] = []
        self._known_until = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    async def connect(self) -> socket.socket:
        """Return a connected socket, of whichever address answers first.

        Raises:
            OSError: No address answers, or the name has none.
        """
        loop = asyncio.get_running_loop()
        if loop.time() >= self._known_until:
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._ask())
            await asyncio.shield(self._asking)
        # The next connection begins with the next address: a balancer's are all used.
        self._known.append(self._known.pop(0))
        return await aiohappyeyeballs.start_connection(
            list(self._known), happy_eyeballs_delay=HAPPY_EYEBALLS_SECONDS, interleave=1, loop=loop
        )

    async def _ask(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except OSError:
            # A name server that is away for a moment: what was known is tried.
            if not self._known:
                raise
        else:
            self._known = list(found)
        self._known_until = loop.time() + KNOWN_SECONDS
