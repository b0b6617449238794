"""One HTTP connection: one request at a time, and which of the received bytes are its answer."""

from __future__ import annotations

import asyncio
import re
import select
from typing import TYPE_CHECKING, NamedTuple, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

if TYPE_CHECKING:
    from order_relay.handlers.http_client.client import HttpClient

# Maximum size of the answer's head and body. A longer answer is not read to its end: its status
# counts, and the connection is closed.
MAX_ANSWER_BYTES = 192 * 1024
# The same for a 2xx whose body is wanted: it may have a result with a text for each of 10,000
# records.
MAX_RESULTS_BYTES = 16 * 1024 * 1024
# Maximum size of a status line, or of an interim answer with its headers.
MAX_START_BYTES = 32 * 1024
# Maximum interim answers (1xx). Some servers report progress with them; a faulty one never stops.
MAX_INTERIM_ANSWERS = 200
# Once the status is there, the rest of the answer must arrive within this time. The body of a 2xx
# that is wanted has until the deadline.
REST_SECONDS = 1.0

LINE_END = b"\r\n"
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-9][0-9][0-9])(?: [^\r\n]*)?\r?\n")
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_HAS_END = re.compile(rb"\n(?:content-length|transfer-encoding)[ \t]*:", re.IGNORECASE)
_RETRY_AFTER = re.compile(rb"\nretry-after[ \t]*:([^\r\n]*)\r?\n", re.IGNORECASE)


class Response(NamedTuple):
    """The answer to a request.

    Attributes:
        status: HTTP status, 101 or from 200 on.
        retry_after: The Retry-After header, if there is one; not kept for a 2xx.
        body: The received part of the body, up to a bound; of a 2xx only if it is wanted.
        is_cut: Whether the answer ended before its end: too slow, too long, or broken.
    """

    status: int
    retry_after: str | None = None
    body: bytes = b""
    is_cut: bool = False


class UnusableConnection(Exception):
    """A reused connection ended before the first byte of the answer."""


class NotHttp(Exception):
    """The received bytes are not an HTTP answer."""


class _Framing:
    """Finds the end of an answer and drops its content; llhttp calls it."""

    def __init__(self) -> None:
        self.begin()
        self.parser = HttpResponseParser(self)

    def begin(self) -> None:
        self.complete = self.keeps = self.more = False

    def feed(self, data: bytes) -> None:
        if data[-1] in LINE_END:
            # llhttp does not report empty lines after an answer, so check before them for its end.
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
    """Keeps the content of an answer, too."""

    def begin(self) -> None:
        super().begin()
        self.raw = b""
        self.body = bytearray()

    @property
    def retry_after(self) -> str | None:
        """The Retry-After header, also if a later part of the head is invalid."""
        end = _END_OF_HEAD.search(self.raw)
        found = _RETRY_AFTER.search(self.raw, 0, end.start() + 2 if end else len(self.raw))
        return None if found is None else found[1].decode("latin-1").strip()

    @property
    def lasts_until_close(self) -> bool:
        """Whether the end of the connection is the end of the body."""
        end = _END_OF_HEAD.search(self.raw)
        return end is not None and _HAS_END.search(self.raw, 0, end.start() + 2) is None

    def feed(self, data: bytes) -> None:
        if len(self.raw) < MAX_ANSWER_BYTES:
            self.raw += data
        super().feed(data)

    def on_body(self, body: bytes) -> None:
        if not self.complete:
            self.body += body

    def break_off(self) -> None:
        """Take what came behind an invalid head as the content; without any nothing is missing."""
        if not self.body:
            end = _END_OF_HEAD.search(self.raw)
            self.body += self.raw[end.end() :] if end else b""
            self.complete = not self.body


class Connection(asyncio.Protocol):
    """A connection of an ``HttpClient``.

    Attributes:
        deadline: When the answer must be complete, by the client's clock.
        ends_at: Time of the loop's clock after which the connection is not used again.
        free_since: When it was last returned to the client, by the loop's clock.
    """

    def __init__(
        self,
        client: HttpClient,
        loop: asyncio.AbstractEventLoop,
        ends_at: float,
        *,
        keep_bodies: bool,
    ) -> None:
        """Belong to ``client``; ``connection_made`` sets the transport."""
        self.deadline = float("inf")
        self.ends_at = ends_at
        self.free_since = loop.time()
        self._client = client
        self._loop = loop
        self._waiter: asyncio.Future[Response] | None = None
        self._answers_read = 0
        # State of the answer that is being read.
        self._start_bytes = b""
        self._interim_count = 0
        self._status = 0
        self._length = 0
        self._rest_timer: asyncio.TimerHandle | None = None
        self._framing: _Framing = _Framing()
        self._success_framing = None if keep_bodies else self._framing
        self._is_wanted = False

    @property
    def is_busy(self) -> bool:
        """Whether a request waits for its answer."""
        return self._waiter is not None

    @property
    def is_open(self) -> bool:
        """Whether neither side has closed it."""
        return not self._transport.is_closing()

    @property
    def is_quiet(self) -> bool:
        """Whether it is open and nothing was received on it: only then may a request be sent.

        This includes bytes that the event loop has not read from the kernel yet. They came before
        the request, so they cannot be its answer.
        """
        return self.is_open and not self._poll.poll(0)

    def send(self, request: bytes, deadline: float) -> asyncio.Future[Response]:
        """Send a request and return the future of its answer, which must come by ``deadline``.

        The future may raise ``UnusableConnection``, ``NotHttp`` or OSError. Call ``abandon`` after
        its cancellation.
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
        """Time out the request, and close the connection."""
        if self._status:
            self._finish(keep=False)
        else:
            self._fail(TimeoutError())

    def abandon(self) -> None:
        """Close it, unless the request had its answer: it may carry another request by now."""
        if self._waiter is not None and self._waiter.cancelled():
            self.close()

    def close(self) -> None:
        """Close it at once; the future of a pending request stays pending."""
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
            self._client.unsolicited(data)
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
            # The status decides, even if the rest is invalid.
            if self._is_wanted and isinstance(framing, _Content):
                framing.break_off()
            self._finish(keep=False)
            return
        if framing.complete:
            if framing.more:
                self._client.unsolicited(data)
            self._finish(keep=framing.keeps and not framing.more)
        elif self._length > (MAX_RESULTS_BYTES if self._is_wanted else MAX_ANSWER_BYTES):
            self._finish(keep=False)
        elif self._rest_timer is None and not self._is_wanted:
            self._rest_timer = self._loop.call_later(REST_SECONDS, self._finish, False)

    def connection_lost(self, error: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        self._client.lost(self)
        if self._waiter is None:
            pass
        elif self._status:
            self._finish(keep=False, is_closed=error is None)
        elif self._answers_read and not self._start_bytes and not self._interim_count:
            self._fail(UnusableConnection())
        elif isinstance(error, OSError):
            self._fail(error)
        else:
            when = "during" if self._start_bytes or self._interim_count else "before"
            received = self._start_bytes.decode("utf-8", "replace")
            text = f"the connection was closed {when} the answer"
            self._fail(ConnectionResetError(f"{text}: {received}" if received else text))

    # --- answers --------------------------------------------------------------------------------

    def _read_start(self, data: bytes) -> bytes:
        """Read the status line, skipping interim answers.

        Returns:
            The answer from its first byte; empty until the status line is complete.
        """
        if self._start_bytes:
            data = self._start_bytes + data
        while (line := _STATUS_LINE.match(data)) is not None:
            status = int(line[1])
            if status >= 200 or status == 101:
                self._begin(status)
                return data
            end = _END_OF_HEAD.search(data, line.end() - 2)
            if end is None:
                break
            self._interim_count += 1
            if self._interim_count > MAX_INTERIM_ANSWERS:
                self._fail(NotHttp(f"more than {MAX_INTERIM_ANSWERS} interim answers (1xx)"))
                return b""
            data = data[end.end() :]
        self._start_bytes = data
        if len(data) > MAX_START_BYTES or (line is None and b"\n" in data):
            self._fail_as_not_http()
        elif self._rest_timer is None and data[:7] != b"HTTP/1."[: len(data)]:
            self._rest_timer = self._loop.call_later(REST_SECONDS, self._fail_as_not_http)
        return b""

    def _fail_as_not_http(self) -> None:
        # The whole line: secrets must be removed before it is cut.
        line = self._start_bytes.split(b"\n", 1)[0].decode("utf-8", "replace")
        self._fail(NotHttp(f"no HTTP answer: {line}"))

    def _begin(self, status: int) -> None:
        self._status = status
        is_success = 200 <= status < 300
        self._is_wanted = is_success and self._success_framing is None
        if is_success and self._success_framing is not None:
            self._framing = self._success_framing
            self._framing.begin()
        else:
            self._framing = _Content()

    def _finish(self, keep: bool, *, is_closed: bool = False) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is None:
            return
        status, framing = self._status, self._framing
        self._status = self._length = self._interim_count = 0
        self._start_bytes = b""
        if self._rest_timer is not None:
            self._rest_timer.cancel()
            self._rest_timer = None
        if keep and not self._transport.get_write_buffer_size():
            self._answers_read += 1
            self._client.free(self, status)
        else:
            self.close()
            # RFC 9110, 15.5.9: the server timed out while idle, and did not read our request.
            if status == 408 and self._answers_read and not waiter.done():
                waiter.set_exception(UnusableConnection())
        if waiter.done():
            return
        if isinstance(framing, _Content):
            is_cut = not framing.complete and not (is_closed and framing.lasts_until_close)
            body = bytes(framing.body)
            waiter.set_result(Response(status, framing.retry_after, body, is_cut))
        else:
            waiter.set_result(SUCCESSES.get(status) or Response(status))

    def _fail(self, error: Exception) -> None:
        waiter = self._waiter
        self.close()
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)


SUCCESSES = {status: Response(status) for status in (200, 201, 202, 204)}
