"""Sockets to a host: name resolution, and the HTTP proxy if there is one."""

from __future__ import annotations

import asyncio
import base64
import re
import socket
from dataclasses import dataclass, field
from urllib.parse import unquote

import aiohappyeyeballs
from aiohappyeyeballs import AddrInfoType
from yarl import URL

# How long addresses are cached: many connections start together, but a host that moves must be
# followed soon.
KNOWN_SECONDS = 10.0
# How long a name server is awaited while there are old addresses to use.
REFRESH_SECONDS = 1.0
# RFC 8305: the delay before the next address is tried as well.
HAPPY_EYEBALLS_SECONDS = 0.25
MAX_HEAD_BYTES = 16 * 1024
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_INTERIM = (b"HTTP/1.1 1", b"HTTP/1.0 1")
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-9][0-9][0-9])[ \r]")


class ProxyRefusal(ConnectionError):
    """The proxy's answer to CONNECT has a ``status`` that is not 2xx."""

    def __init__(self, text: str, status: int) -> None:
        """Keep the status."""
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy's address and our credentials.

    Attributes:
        host: Name or address.
        port: TCP port.
        headers: Header lines for requests to it: Proxy-Authorization, or none.
    """

    host: str
    port: int
    headers: str = field(default="", repr=False)


def host_of(url: URL) -> str:
    """Return the host to look up, in ASCII: Python would encode other letters by IDNA 2003.

    For ``straße.test`` that is ``strasse.test``, another host.
    """
    return unquote(url.raw_host or "")  # the zone of an IPv6 address


def parse_proxy(text: str) -> Proxy:
    """Return the proxy of a URL that ``rules.check_proxy`` accepts."""
    url = URL(text)
    headers = ""
    if url.user is not None:
        credentials = f"{url.user}:{url.password or ''}".encode()
        headers = f"Proxy-Authorization: Basic {base64.b64encode(credentials).decode()}\r\n"
    return Proxy(host_of(url), url.port or 80, headers)


async def tunnel(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, host: str, port: int, proxy: Proxy
) -> None:
    """Ask the proxy to connect the socket to a host (RFC 9110, 9.3.6).

    Raises:
        OSError: The proxy refused, or did not answer.
    """
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    request = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{proxy.headers}\r\n"
    await loop.sock_sendall(sock, request.encode())
    head = b""
    while (end := _HEAD_END.search(head)) is None or head.startswith(_INTERIM):
        if end is not None:
            head = head[end.end() :]
            continue
        data = await loop.sock_recv(sock, MAX_HEAD_BYTES)
        head += data
        if not data or len(head) > MAX_HEAD_BYTES:
            raise ConnectionError(f"proxy {proxy.host}:{proxy.port}: no answer to CONNECT")
    found = _STATUS.match(head)
    status = int(found[1]) if found else 0
    if not 200 <= status < 300:
        line = head.split(b"\r\n", 1)[0][:80].decode("latin-1")
        text = f"proxy {proxy.host}:{proxy.port} answered CONNECT with {line!r}"
        raise ProxyRefusal(text, status)


class Addresses:
    """The addresses of one host, resolved at most every 10 s."""

    def __init__(self, host: str, port: int) -> None:
        """Remember the host; nothing is resolved yet."""
        self.host = host
        self.port = port
        self._known: list[AddrInfoType] = []
        self._known_until = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    @property
    def are_known(self) -> bool:
        """Whether the name was resolved once."""
        return bool(self._known)

    async def connect(self) -> socket.socket:
        """Return a socket connected to the first address that answers.

        Raises:
            OSError: No address answers, or the name cannot be resolved.
        """
        loop = asyncio.get_running_loop()
        if loop.time() >= self._known_until:
            asking = self._asking
            if asking is None or asking.done():
                asking = self._asking = asyncio.create_task(self._ask())
                # Retrieved, or asyncio logs it if all that waited have given up.
                asking.add_done_callback(lambda task: task.cancelled() or task.exception())
            await asyncio.wait({asking}, timeout=REFRESH_SECONDS if self._known else None)
            if not self._known:
                asking.result()
            self._known_until = max(self._known_until, loop.time() + KNOWN_SECONDS)
        # Each connection starts with the next address, so that all of them are used.
        self._known.append(self._known.pop(0))
        no_socket: list[OSError] = []

        def new_socket(address: AddrInfoType) -> socket.socket:
            try:
                return socket.socket(*address[:3])
            except OSError as error:
                no_socket.append(error)
                raise

        try:
            return await aiohappyeyeballs.start_connection(
                list(self._known),
                happy_eyeballs_delay=HAPPY_EYEBALLS_SECONDS,
                interleave=1,
                loop=loop,
                socket_factory=new_socket,
            )
        except OSError as error:
            if no_socket and error.errno is None:  # the error of several addresses
                raise error from no_socket[0]
            raise

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
