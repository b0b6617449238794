"""The sample external logger: ``POST /logs``, following a script; ``GET /`` says what it did."""

from __future__ import annotations

import asyncio
import errno
import time
from collections import Counter
from collections.abc import Callable

from aiohttp import web

from demo.errors import CannotRun
from demo.logger_script import RETRY_AFTER_SECONDS, Kind, LoggerScript

HOST = "127.0.0.1"
# Longer than any client's patience.
_HANG_SECONDS = 600.0


class SampleLogger:
    """An HTTP server that answers as its script says, and remembers what it answered.

    Attributes:
        requests: Requests that came.
        answers: How they ended, by kind.
        slow: How many took long.
    """

    def __init__(
        self,
        script: LoggerScript,
        on_accepted: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare the server.

        Args:
            script: What to do with each request.
            on_accepted: Hears the idempotency key of every request that is answered 2xx.
            clock: Seconds that only go forward.
        """
        self._script = script
        self._on_accepted = on_accepted
        self._clock = clock
        self._runner: web.AppRunner | None = None
        self.requests = 0
        self.answers: Counter[Kind] = Counter()
        self.slow = 0

    @property
    def outages(self) -> int:
        """Full outages so far."""
        return self._script.outages_begun

    @property
    def is_down(self) -> bool:
        """Whether a full outage is on."""
        return self._script.is_down(self._clock())

    async def start(self, port: int, host: str = HOST) -> int:
        """Begin to listen, on loopback unless told otherwise.

        Returns:
            The port; where 0 was given, the one that was free.

        Raises:
            CannotRun: The port is in use or not allowed.
        """
        application = web.Application()
        application.router.add_post("/logs", self._take)
        application.router.add_get("/", self._figures)
        # A request whose client has gone must not be counted as answered later.
        self._runner = web.AppRunner(
            application, access_log=None, handler_cancellation=True, shutdown_timeout=0.2
        )
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            await self.stop()
            raise CannotRun(
                f"{port_trouble(port, error)} for the sample logger: "
                "choose another with --logger-port or LOGGER_PORT"
            ) from error
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Close every connection. May be called twice."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _take(self, request: web.Request) -> web.StreamResponse:
        event_id = request.headers.get("Idempotency-Key", "")
        await request.read()
        self.requests += 1
        answer = self._script.answer(event_id, self._clock())
        await asyncio.sleep(answer.delay_seconds)
        kind = self._script.conclude(event_id, answer, self._clock())
        self.slow += answer.slow
        self.answers[kind] += 1
        if kind is Kind.ACCEPTED:
            self._on_accepted(event_id)
        return await _respond(request, kind)

    async def _figures(self, request: web.Request) -> web.Response:
        answers = {str(kind): self.answers[kind] for kind in Kind}
        return web.json_response(
            {"requests": self.requests, "answers": answers, "is_down": self.is_down}
        )


async def _respond(request: web.Request, kind: Kind) -> web.StreamResponse:
    match kind:
        case Kind.ACCEPTED:
            return web.json_response({"status": "logged"}, status=201)
        case Kind.REFUSED:
            return web.json_response({"error": "this order cannot be logged"}, status=422)
        case Kind.BUSY:
            after = {"Retry-After": str(RETRY_AFTER_SECONDS)}
            return web.json_response({"error": "too busy"}, status=429, headers=after)
        case Kind.RESET:
            if request.transport is not None:
                request.transport.abort()
        case Kind.HANGING:
            await asyncio.sleep(_HANG_SECONDS)
        case Kind.UNAVAILABLE:
            pass
    return web.json_response({"error": "not available"}, status=503)


def port_trouble(port: int, error: OSError) -> str:
    """Say why a port cannot be listened on."""
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is in use, needed"
    if error.errno == errno.EACCES:
        return f"port {port} is not allowed for this user, needed"
    return f"port {port} cannot be used ({error.strerror}), needed"
