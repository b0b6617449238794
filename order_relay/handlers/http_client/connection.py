"""One connection: one request at a time, and what of the bytes that come is its answer."""

from __future__ import annotations

import asyncio
import re
import select
from typing import NamedTuple, Protocol, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

# Of the answer's head and body together. What is longer is not read to its end: its status counts,
# and the connection is closed.
MAX_ANSWER_BYTES = 192 * 1024
# Of a status line, or an interim answer with its headers.
MAX_START_BYTES = 32 * 1024
# Answers 1xx before the answer: some tell of progress, and a flood of them never ends.
MAX_INTERIM_ANSWERS = 20
# Once there is a status, the rest of the answer has so long to come.
REST_SECONDS = 1.0

LINE_END = b"\r\n"
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-9][0-9][0-9])(?: [^\r\n]*)?\r?\n")
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_RETRY_AFTER = re.compile(rb"\nretry-after[ \t]*:([^\r\n]*)\r?\n", re.IGNORECASE)


class Response(NamedTuple):
    """The answer to a request.

    Attributes:
        status: HTTP status, 101 or from 200 on.
        retry_after: The header, if it came; not of a 2xx.
        body: What of the body came, up to a bound; of a 2xx only where that is wanted.
    """

    status: int
    retry_after: str | None = None
    body: bytes = b""


class UnusableConnection(Exception):
    """A connection that had been used before ended before a byte of the answer came."""


class NotHttp(Exception):
    """The bytes that came are not an HTTP answer."""


class Pool(Protocol):
    """Where connections belong."""

    def free(self, connection: Connection) -> None:
        """Take a connection whose answer was read to its end."""

    def lost(self, connection: Connection) -> None:
        """Forget a connection."""

    def unasked(self, data: bytes) -> None:
        """Hear of bytes that came without a request: they are no answer (RFC 9112, 9.2)."""


class _Framing:
    """Finds the end of an answer whose content nobody wants; llhttp calls it."""

    def __init__(self) -> None:
        self.begin()
        self.parser = HttpResponseParser(self)

    def begin(self) -> None:
        self.complete = self.keeps = self.more = False

    def feed(self, data: bytes) -> None:
        if data[-1] in LINE_END:
            # Whether the answer had ended before: llhttp says nothing of empty lines behind it.
            self.parser.feed_data(data[:-1])
            self.more |= self.complete
            data = data[-1:]
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        if self.complete:
            self.more = True

    def on_message_complete(self) -> None:
        if not self.complete:
            self.complete = True
            self.keeps = self.parser.should_keep_alive()


class _Content(_Framing):
    """Keeps what says why a request was refused, too."""

    def begin(self) -> None:
        super().begin()
        self.raw = b""
        self.body = b""

    @property
    def retry_after(self) -> str | None:
        """The header, also where the head has a fault behind it."""
        end = _END_OF_HEAD.search(self.raw)
        found = _RETRY_AFTER.search(self.raw, 0, end.start() + 2 if end else len(self.raw))
        return None if found is None else found[1].decode("latin-1").strip()

    def feed(self, data: bytes) -> None:
        self.raw += data
        super().feed(data)

    def on_body(self, body: bytes) -> None:
        if not self.complete:
            self.body += body


class Connection(asyncio.Protocol):
    """A connection of a pool.

    Attributes:
        deadline: When its answer must be there, by the loop's clock.
        ends_at: From when on it is not used again, by that clock.
        free_since: When it was last given back, by that clock.
    """

    def __init__(
        self, pool: Pool, loop: asyncio.AbstractEventLoop, ends_at: float, *, keep_bodies: bool
    ) -> None:
        """Belong to ``pool``; the transport comes with ``connection_made``."""
        self.deadline = float("inf")
        self.ends_at = ends_at
        self.free_since = loop.time()
        self._pool = pool
        self._loop = loop
        self._waiter: asyncio.Future[Response] | None = None
        self._answers = 0
        # Of the answer that is being read.
        self._start = b""
        self._interim = 0
        self._status = 0
        self._length = 0
        self._rest: asyncio.TimerHandle | None = None
        self._framing: _Framing = _Framing()
        self._success = None if keep_bodies else self._framing

    @property
    def is_busy(self) -> bool:
        """Whether a request waits for its answer."""
        return self._waiter is not None

    @property
    def is_open(self) -> bool:
        """Whether neither end has closed it."""
        return not self._transport.is_closing()

    @property
    def is_quiet(self) -> bool:
        """Whether it is open and nothing has come on it: only then may a request go.

        Bytes that the kernel has and the event loop has not read yet count, too: they came before
        the request was sent, so they cannot be its answer.
        """
        return self.is_open and not self._poll.poll(0)

    def send(self, request: bytes, deadline: float) -> asyncio.Future[Response]:
        """Send a request whose answer must be there by ``deadline``; returns the future answer.

        Errors of the future: ``UnusableConnection``, ``NotHttp``, OSError. Cancel it by ``close``.
        """
        waiter: asyncio.Future[Response] = self._loop.create_future()
        if not self.is_open:  # since it was made
            waiter.set_exception(ConnectionResetError("the connection was closed at once"))
            return waiter
        self.deadline = deadline
        self._waiter = waiter
        self._transport.write(request)
        return waiter

    def expire(self) -> None:
        """End a request whose deadline has passed, and the connection."""
        if self._status:
            self._finish(keep=False)
        else:
            self._fail(TimeoutError())

    def close(self) -> None:
        """Close it at once; a request that waits is forgotten."""
        self._waiter = None
        self._transport.abort()

    # --- asyncio.Protocol -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See ``asyncio.Protocol``."""
        self._transport = cast(asyncio.Transport, transport)
        self._poll = select.poll()
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        if self._waiter is None:
            self._pool.unasked(data)
            self.close()
            return
        if not self._status:
            data = self._read_start(data)
            if not data:
                return
        framing = self._framing
        self._length += len(data)
        try:
            framing.feed(data)
        except (HttpParserError, HttpParserUpgrade):
            # The status decides, whatever is wrong with what follows.
            self._finish(keep=False)
            return
        if framing.complete:
            if framing.more:
                self._pool.unasked(data)
            self._finish(keep=framing.keeps and not framing.more)
        elif self._length > MAX_ANSWER_BYTES:
            self._finish(keep=False)
        elif self._rest is None:
            self._rest = self._loop.call_later(REST_SECONDS, self._finish, False)

    def connection_lost(self, error: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        self._pool.lost(self)
        if self._waiter is None:
            pass
        elif self._status:
            self._finish(keep=False)
        elif self._answers and not self._start and not self._interim:
            self._fail(UnusableConnection())
        elif isinstance(error, OSError):
            self._fail(error)
        else:
            where = "in the midst of" if self._start or self._interim else "instead of"
            came = self._start.decode("utf-8", "replace")
            text = f"the connection was closed {where} an answer"
            self._fail(ConnectionResetError(f"{text}: {came}" if came else text))

    # --- answers --------------------------------------------------------------------------------

    def _read_start(self, data: bytes) -> bytes:
        """Read up to the status line of the answer, over interim ones.

        Returns:
            The answer from its beginning; nothing while the status line is not there.
        """
        if self._start:
            data = self._start + data
        while (line := _STATUS_LINE.match(data)) is not None:
            status = int(line[1])
            if status >= 200 or status == 101:
                self._begin(status)
                return data
            end = _END_OF_HEAD.search(data, line.end() - 2)
            if end is None:
                break
            self._interim += 1
            if self._interim > MAX_INTERIM_ANSWERS:
                self._fail(NotHttp(f"more than {MAX_INTERIM_ANSWERS} interim answers (1xx)"))
                return b""
            data = data[end.end() :]
        self._start = data
        if len(data) > MAX_START_BYTES or (line is None and b"\n" in data):
            self._fail_as_not_http()
        elif self._rest is None and data[:7] != b"HTTP/1."[: len(data)]:
            self._rest = self._loop.call_later(REST_SECONDS, self._fail_as_not_http)
        return b""

    def _fail_as_not_http(self) -> None:
        # The whole line: secrets are taken out of it before it is cut.
        line = self._start.split(b"\n", 1)[0].decode("utf-8", "replace")
        self._fail(NotHttp(f"no HTTP answer: {line}"))

    def _begin(self, status: int) -> None:
        self._status = status
        if 200 <= status < 300 and self._success is not None:
            self._framing = self._success
            self._framing.begin()
        else:
            self._framing = _Content()

    def _finish(self, keep: bool) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is None:
            return
        status, framing = self._status, self._framing
        self._status = self._length = self._interim = 0
        self._start = b""
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
        if keep and not self._transport.get_write_buffer_size():
            self._answers += 1
            self._pool.free(self)
        else:
            self.close()
            # RFC 9110, 15.5.9: it had waited for a request, and not seen ours.
            if status == 408 and self._answers and not waiter.done():
                waiter.set_exception(UnusableConnection())
        if waiter.done():
            return
        if isinstance(framing, _Content):
            waiter.set_result(Response(status, framing.retry_after, framing.body))
        else:
            waiter.set_result(SUCCESSES.get(status) or Response(status))

    def _fail(self, error: Exception) -> None:
        waiter = self._waiter
        self.close()
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)


SUCCESSES = {status: Response(status) for status in (200, 201, 202, 204)}
