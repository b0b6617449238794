"""Resolves a host name and connects to one of its addresses."""

from __future__ import annotations

import asyncio
import socket

import aiohappyeyeballs
from aiohappyeyeballs import AddrInfoType

# How long addresses are cached: many connections start together, but a host that moves must be
# followed soon.
KNOWN_SECONDS = 10.0
# RFC 8305: the delay before the next address is tried as well.
HAPPY_EYEBALLS_SECONDS = 0.25


class Addresses:
    """The addresses of one host, resolved at most every 10 s."""

    def __init__(self, host: str, port: int) -> None:
        """Remember the host; nothing is resolved yet."""
        self.host = host
        self.port = port
        self._known: list[AddrInfoType] = []
        self._known_until = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    async def connect(self) -> socket.socket:
        """Return a socket connected to the first address that answers.

        Raises:
            OSError: No address answers, or the name cannot be resolved.
        """
        loop = asyncio.get_running_loop()
        if loop.time() >= self._known_until:
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._ask())
            await asyncio.shield(self._asking)
        # Each connection starts with the next address, so that all of them are used.
        self._known.append(self._known.pop(0))
        return await aiohappyeyeballs.start_connection(
            list(self._known), happy_eyeballs_delay=HAPPY_EYEBALLS_SECONDS, interleave=1, loop=loop
        )

    async def _ask(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except OSError:
            # If the name server is away for a moment, the old addresses are used.
            if not self._known:
                raise
        else:
            self._known = list(found)
        self._known_until = loop.time() + KNOWN_SECONDS
