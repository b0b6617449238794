"""A scripted target: a real HTTP server that answers as the test says.

    async with ScriptedSink() as sink:
        sink.script = lambda request: Answer(503) if request.order_id == 7 else Answer()
        ...
        await sink.wait_for(lambda s: len(s.accepted) == 100, timeout=20)

It runs in the test's event loop. Every request is recorded when its body has arrived.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from ssl import SSLContext
from typing import Any, Self

from aiohttp import web

from tests.support.kafka.ports import LOOPBACK, free_ports

CLOSE_SECONDS = 0.05
ACCEPTING = "_accept_connection2"  # of asyncio
# Conditions are asked at most this often: they may look at thousands of requests.
COALESCE_SECONDS = 0.01


class Fault(StrEnum):
    """How a request ends without a whole answer."""

    HANG = "hang"
    """Never answered; the connection stays open."""
    RESET = "reset"
    """The connection is closed instead of an answer."""
    CUT = "cut"
    """The status and half of the body, then the connection is closed."""
    ENDLESS = "endless"
    """The status, then a body that goes on for as long as the client reads."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the sink does with one request.

    Attributes:
        status: HTTP status.
        headers: Response headers.
        body: Response body.
        gate: Take one from it before anything is answered.
        delay_seconds: Wait before anything is answered.
        drip_seconds: Wait before each byte of the body.
        fault: How it fails, if it does.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    gate: asyncio.Semaphore | None = None
    delay_seconds: float = 0.0
    drip_seconds: float = 0.0
    fault: Fault | None = None

    @property
    def accepts(self) -> bool:
        """Whether the client is told 2xx."""
        return 200 <= self.status < 300 and self.fault not in (Fault.HANG, Fault.RESET)


@dataclass(eq=False)
class Received:
    """One request as it arrived, and its result.

    Attributes:
        arrived_at: Monotonic seconds.
        idempotency_key: Its ``Idempotency-Key``; "" without one.
        body: Its body.
        headers: Its headers, with lower-case names.
        connection: The same number for requests over one connection.
        attempt: Which one this is for its idempotency key, from 1.
        answer: What it was answered; ``None`` while the answer is being delayed.
        answered_at: Monotonic seconds; ``None`` like ``answer``.
        sent_bytes: How much of the body of an endless answer went out.
    """

    arrived_at: float
    method: str
    path: str
    idempotency_key: str
    body: bytes
    headers: Mapping[str, str]
    connection: int
    attempt: int
    answer: Answer | None = None
    answered_at: float | None = None
    sent_bytes: int = 0

    @cached_property
    def json(self) -> dict[str, Any]:
        """The body as JSON; empty where it is none."""
        try:
            parsed = json.loads(self.body)
        except ValueError:
            return {}
        return parsed if isinstance(parsed, dict) else {}

    @property
    def order_id(self) -> int | None:
        """The order's id, where the body has one."""
        return self.json.get("orderId")

    @property
    def key(self) -> str | None:
        """The record's key, where the body says it (``tests.support.orders`` writes it there)."""
        return self.json.get("key")


class ScriptedSink:
    """The server. Attributes may be read at any time; only the loop that started it may call it.

    Attributes:
        script: Decides each answer; called with the request when its body has arrived.
        requests: Every request in order of arrival.
        accepted: Idempotency key and body of every request answered 2xx, in that order.
        port: Where it listens, or refuses to.
        open_requests: Requests without an answer yet.
        most_open_requests: Their largest number so far.
    """

    def __init__(self, *, tls: SSLContext | None = None) -> None:
        self.script: Callable[[Received], Answer] = lambda request: Answer()
        self.requests: list[Received] = []
        self.accepted: list[tuple[str, bytes]] = []
        self.port = free_ports(1)[0]
        self.open_requests = 0
        self.most_open_requests = 0
        self._tls = tls
        self._by_key: dict[str, list[Received]] = {}
        self._planned: deque[Answer] = deque()
        self._connections: dict[object, int] = {}
        self._changed = asyncio.Event()
        self._going_down = asyncio.Event()
        self._web_server: web.Server | None = None
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        await self.up()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.down()

    @property
    def url(self) -> str:
        """Where to POST."""
        return f"{'https' if self._tls else 'http'}://{LOOPBACK}:{self.port}/logs"

    @property
    def connections(self) -> int:
        """Connections that made a request so far."""
        return len({request.connection for request in self.requests})

    @property
    def accepted_keys(self) -> list[str]:
        """Idempotency keys answered 2xx, in that order."""
        return [key for key, _ in self.accepted]

    @property
    def accepted_bodies(self) -> list[bytes]:
        """Bodies answered 2xx, in that order."""
        return [body for _, body in self.accepted]

    def attempts(self, idempotency_key: str) -> list[Received]:
        """The requests of one idempotency key, in order of arrival."""
        return self._by_key.get(idempotency_key, [])

    def by_key(self) -> dict[str | None, list[Received]]:
        """All requests by the key in their bodies, each list in order of arrival."""
        grouped: dict[str | None, list[Received]] = {}
        for request in self.requests:
            grouped.setdefault(request.key, []).append(request)
        return grouped

    def fail_next(self, count: int, status: int = 503, **answer: Any) -> None:
        """Answer the next requests with this status (and this of ``Answer``), before the script."""
        self._planned.extend(Answer(status, **answer) for _ in range(count))

    async def up(self) -> None:
        """Listen; does nothing when it does."""
        if self._server is None:
            self._going_down.clear()
            self._web_server = web.Server(self._handle, access_log=None)
            self._server = await asyncio.get_running_loop().create_server(
                self._web_server, LOOPBACK, self.port, ssl=self._tls, reuse_address=True
            )

    async def down(self) -> None:
        """Refuse connections and cut the open ones, until ``up``; the port stays the same."""
        server, web_server = self._server, self._web_server
        self._server = self._web_server = None
        self._going_down.set()
        if server is not None and web_server is not None:
            # Tasks of asyncio turn accepted sockets into connections; a task that begins after
            # the close would leave its socket open. None begins between this check and that.
            while tasks := [one for one in asyncio.all_tasks() if ACCEPTING in repr(one)]:
                if (await asyncio.wait(tasks, timeout=CLOSE_SECONDS))[1]:
                    break  # a slow handshake
            server.close()
            await web_server.shutdown(CLOSE_SECONDS)
            await server.wait_closed()

    async def wait_for(
        self, condition: Callable[["ScriptedSink"], object], timeout: float = 30.0
    ) -> None:
        """Wait until the condition holds of this sink.

        Raises:
            TimeoutError: It did not in time; the text has the counts.
        """
        try:
            async with asyncio.timeout(timeout):
                while not condition(self):
                    self._changed.clear()
                    await self._changed.wait()
                    await asyncio.sleep(COALESCE_SECONDS)
        except TimeoutError:
            raise TimeoutError(f"not within {timeout:g} s; {self.summary()}") from None

    def summary(self) -> str:
        """Say in a line what came and how it was answered."""
        counts: dict[str, int] = {}
        for request in self.requests:
            answer = request.answer
            what = "open" if answer is None else str(answer.fault or answer.status)
            counts[what] = counts.get(what, 0) + 1
        return f"sink: {len(self.requests)} requests, {len(self.accepted)} accepted, {counts}"

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        received = self._record(request, await request.content.read())
        answer = self._planned.popleft() if self._planned else self.script(received)
        self.open_requests += 1
        self.most_open_requests = max(self.most_open_requests, self.open_requests)
        self._changed.set()
        try:
            if answer.gate is not None:
                await answer.gate.acquire()
            if answer.delay_seconds:
                await asyncio.sleep(answer.delay_seconds)
        finally:
            self.open_requests -= 1
        received.answer = answer
        received.answered_at = time.monotonic()
        if answer.accepts:
            self.accepted.append((received.idempotency_key, received.body))
        self._changed.set()
        return await self._respond(request, received, answer)

    def _record(self, request: web.BaseRequest, body: bytes) -> Received:
        key = request.headers.get("Idempotency-Key", "")
        same = self._by_key.setdefault(key, [])
        received = Received(
            arrived_at=time.monotonic(),
            method=request.method,
            path=request.path,
            idempotency_key=key,
            body=body,
            headers={name.lower(): value for name, value in request.headers.items()},
            # The protocol object is kept, so that its identity is never given to another one.
            connection=self._connections.setdefault(request.protocol, len(self._connections)),
            attempt=len(same) + 1,
        )
        same.append(received)
        self.requests.append(received)
        return received

    async def _respond(
        self, request: web.BaseRequest, received: Received, answer: Answer
    ) -> web.StreamResponse:
        if answer.fault is None and not answer.drip_seconds:
            return web.Response(status=answer.status, headers=answer.headers, body=answer.body)
        if answer.fault is Fault.HANG:
            await self._going_down.wait()
        response = web.StreamResponse(status=answer.status, headers=answer.headers)
        if answer.fault in (Fault.RESET, Fault.HANG):
            _abort(request)
            return response
        if answer.fault is not Fault.ENDLESS:
            response.content_length = len(answer.body)
        try:
            await response.prepare(request)
            await self._write_body(response, received, answer)
        except ConnectionError:  # the client has closed the connection
            return response
        if answer.fault is Fault.CUT:
            _abort(request)
        return response

    async def _write_body(
        self, response: web.StreamResponse, received: Received, answer: Answer
    ) -> None:
        if answer.fault is Fault.ENDLESS:
            while True:
                await response.write(b"x" * 8192)
                received.sent_bytes += 8192
        elif answer.fault is Fault.CUT:
            await response.write(answer.body[: len(answer.body) // 2])
        else:
            for byte in answer.body:
                await asyncio.sleep(answer.drip_seconds)
                await response.write(bytes((byte,)))


def _abort(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.abort()
