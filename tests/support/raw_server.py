r"""A server of scripted bytes, for answers no HTTP server sends.

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n", b"Content-Length: 0\r\n\r\n")
        await peer.end()

    async with RawServer(script) as server:
        ...                               # server.url
        assert server.requests[0].key == "order-paid-events-0-17"

It runs in the test's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from fcntl import ioctl
from termios import TIOCOUTQ
from typing import NoReturn, Self

from tests.support.kafka.ports import LOOPBACK
from tests.support.waiting import eventually

Script = Callable[["Peer"], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy"
TIMED_OUT = b"HTTP/1.1 408 Request Time-out\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
# More than a client may read of an answer that does not end.
FLOOD_BYTES = 256 * 1024 * 1024

# One turn of the loop sends a packet, the next one lets the client read it.
TURNS = 2
READ_BYTES = 65_536
END_SECONDS = 20.0
# SO_LINGER of 0: closing resets the connection.
NO_LINGER = struct.pack("ii", 1, 0)


class Ended(Exception):
    """The client has ended the connection; the script that it interrupts is over."""


@dataclass(slots=True)
class Request:
    """One request as it arrived.

    Attributes:
        connection: Number of its connection, from 0.
        head: Its head, with the empty line.
        body: Its body; empty where the script has read the head alone.
    """

    connection: int
    head: bytes
    body: bytes = b""

    def header(self, name: str) -> str:
        """The value of a header; "" without it."""
        for line in self.head.decode("latin-1").split("\r\n")[1:]:
            found, _, value = line.partition(":")
            if found.lower() == name.lower():
                return value.strip()
        return ""

    @property
    def key(self) -> str:
        """Its ``Idempotency-Key``."""
        return self.header("Idempotency-Key")


class Peer:
    """The server's end of one connection. What it waits for raises ``Ended`` at the client's end.

    Attributes:
        number: Connections are numbered from 0.
        sent_bytes: Bytes that ``send`` and ``flood`` have written.
        ended: The client has ended the connection, or ``reset`` has.
    """

    def __init__(
        self,
        number: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        requests: list[Request],
    ) -> None:
        self.number = number
        self.sent_bytes = 0
        self.ended = asyncio.Event()
        self._reader = reader
        self._writer = writer
        self._requests = requests

    async def request(self) -> Request:
        """Read one request, record it and return it."""
        request = await self.head()
        request.body = await self.body(request)
        return request

    async def head(self) -> Request:
        """Read the head of a request, and no more; record it and return it."""
        request = Request(self.number, await self._read(self._reader.readuntil(b"\r\n\r\n")))
        self._requests.append(request)
        return request

    async def body(self, request: Request) -> bytes:
        """Read the body of a request whose head was read."""
        length = int(request.header("Content-Length") or 0)
        return await self._read(self._reader.readexactly(length))

    async def some(self) -> bytes:
        """Read the bytes that have come, one at least."""
        return await self._read(self._reader.read(READ_BYTES)) or self._end()

    async def send(self, *packets: bytes) -> None:
        """Send packets that the client reads one after another."""
        for packet in packets:
            self._write(packet)
            for _ in range(TURNS):
                await asyncio.sleep(0)

    async def arrived(self) -> None:
        """Wait until the client has read all that was sent, or has ended the connection."""
        await eventually(self._acknowledged, END_SECONDS, "all was acknowledged")
        for _ in range(TURNS):
            await asyncio.sleep(0)

    async def flood(self, chunk: bytes, limit: int, *, pause_seconds: float = 0.0) -> None:
        """Send a chunk again and again: ``limit`` bytes, or until the client ends the connection.

        ``sent_bytes`` includes what the system buffers and the client has not read.
        """
        with contextlib.suppress(ConnectionError):
            while self.sent_bytes < limit and not self._reader.at_eof():
                self._write(chunk)
                await self._writer.drain()
                await asyncio.sleep(pause_seconds)
        await self.end()

    async def end(self) -> None:
        """Wait until the client has ended the connection; what it sends meanwhile is ignored."""
        while True:
            await self.some()

    async def pass_on(self, port: int, sent: bytes = b"") -> None:
        """Pass bytes between the client and a local port, until one of both ends.

        Args:
            port: Where they go.
            sent: What the client has sent of them.
        """
        reader, writer = await asyncio.open_connection(LOOPBACK, port)

        async def there() -> None:
            writer.write(sent)
            while True:
                writer.write(await self.some())
                await writer.drain()

        async def back() -> None:
            while data := await reader.read(READ_BYTES):
                self._write(data)
                await self._writer.drain()

        ways = [asyncio.create_task(there()), asyncio.create_task(back())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            writer.close()

    def finish(self) -> None:
        """Send nothing more (FIN); the client's bytes still arrive."""
        self._writer.write_eof()

    def reset(self) -> None:
        """End the connection with RST."""
        connection: socket.socket = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        self._writer.transport.abort()
        self.ended.set()

    def _acknowledged(self) -> bool:
        if self._writer.is_closing() or self._reader.at_eof():
            return True
        connection: socket.socket = self._writer.get_extra_info("socket")
        return not any(ioctl(connection, TIOCOUTQ, bytes(4)))

    def _write(self, data: bytes) -> None:
        self._writer.write(data)
        self.sent_bytes += len(data)

    async def _read(self, reading: Awaitable[bytes]) -> bytes:
        try:
            return await reading
        except (asyncio.IncompleteReadError, ConnectionError):
            self._end()

    def _end(self) -> NoReturn:
        self.ended.set()
        raise Ended


def replies(*answers: bytes) -> Script:
    """Answer each request in turn with the next of these; the last one serves all others."""

    async def script(peer: Peer) -> None:
        turn = 0
        while True:
            await peer.request()
            await peer.send(answers[min(turn, len(answers) - 1)])
            turn += 1

    return script


@contextlib.contextmanager
def unanswered(host: str = LOOPBACK, port: int = 0) -> Iterator[int]:
    """A port, of the system's choice if 0, to which connecting is neither accepted nor refused."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket(family))
        full.bind((host, port))
        full.listen(0)
        # Nothing accepts: once the backlog is full, further connections are not answered.
        for _ in range(4):
            waiting = stack.enter_context(socket.socket(family))
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        yield full.getsockname()[1]


class RawServer:
    """Serves each connection with a script. Bytes as a script: one request is read, they are sent.

    The connection is closed when its script is over.

    Attributes:
        requests: Every request, in order of arrival.
        peers: Every connection, in order of arrival.
        port: Where it listens.
        url: Where to send requests.
    """

    def __init__(self, *scripts: bytes | Script, host: str = LOOPBACK, port: int = 0) -> None:
        """Give each connection in turn one of the scripts; the last one serves all others."""
        self.requests: list[Request] = []
        self.peers: list[Peer] = []
        self.port = port
        self.url = ""
        self._host = host
        self._scripts = scripts
        self._tasks: set[asyncio.Task[None]] = set()
        self._errors: list[Exception] = []
        self._server: asyncio.Server | None = None

    @property
    def connections(self) -> list[int]:
        """The number of each request's connection."""
        return [request.connection for request in self.requests]

    async def ended(self, connection: int) -> None:
        """Wait until the client has ended a connection whose script reads from it.

        Raises:
            TimeoutError: It has not.
        """
        try:
            async with asyncio.timeout(END_SECONDS):
                await self.peers[connection].ended.wait()
        except TimeoutError:
            raise TimeoutError(f"the client keeps connection {connection}") from None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, self._host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        host = f"[{self._host}]" if ":" in self._host else self._host
        self.url = f"http://{host}:{self.port}"
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        if error is None and self._errors:
            raise self._errors[0]

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(len(self.peers), reader, writer, self.requests)
        self.peers.append(peer)
        task = asyncio.get_running_loop().create_task(self._serve(peer, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, peer: Peer, writer: asyncio.StreamWriter) -> None:
        script = self._scripts[min(peer.number, len(self._scripts) - 1)]
        try:
            if isinstance(script, bytes):
                await peer.request()
                await peer.send(script)
            else:
                await script(peer)
        except Ended:
            pass
        except asyncio.CancelledError:  # the test is over
            writer.transport.abort()
        except Exception as error:  # noqa: BLE001 - reported to the test when the server closes
            self._errors.append(error)
        finally:
            writer.close()
