"""``POST /order-paid``: publishes an event, and answers once it is durable.

The body is published byte for byte. After 429, 503 or no answer the client sends the same request
again, with the same ``event-id`` or ``Idempotency-Key`` header, so that duplicates are recognized.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from order_relay.errors import InvalidEvent, PublishFailed, RecordTooLarge
from order_relay.logs.log_line import LogLine
from order_relay.model.headers import EVENT_ID_HEADER, Header
from order_relay.model.trace_context import TRACEPARENT, TRACESTATE, of_request
from order_relay.publishing.publisher import SENDER_LEFT, Published, Publisher, PublishResult
from order_relay.web.access import Access
from order_relay.web.request_body import BODY_SECONDS, Refused, read_body

logger = logging.getLogger(__name__)

PATH = "/order-paid"
ID_HEADERS = (EVENT_ID_HEADER, "Idempotency-Key")

BUSY_RETRY_SECONDS = 1
FAILED_RETRY_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the page; the defaults bound its memory to some 64 MiB.

    Attributes:
        body_bytes: Size of one event; Kafka's default for a record is 1 MiB.
        requests: Events under way whose bodies were received.
        total_bytes: Bytes received of all events under way.
        body_seconds: From the head of a request to the end of its body.
    """

    body_bytes: int = 1024 * 1024
    requests: int = 2000
    total_bytes: int = 64 * 1024 * 1024
    body_seconds: float = BODY_SECONDS


@dataclass(eq=False)
class OrderPaidPage:
    """Publishes the bodies of requests that ``access`` allows.

    ``on_rejected`` is called for each event that is refused before publishing, with ``too_large``
    or ``busy``.
    """

    publisher: Publisher
    access: Access
    limits: Limits = field(default_factory=Limits)
    on_rejected: Callable[[str], None] = lambda _: None
    _requests: int = 0
    _bytes: int = 0
    _full: bool = False

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Serve the page."""
        router.add_post(PATH, self._publish)

    async def _publish(self, request: web.Request) -> web.Response:
        # The head is checked before any of the body is read.
        self.access.check(request)
        _check_type(request)
        event_id = _event_id(request)
        limits = self.limits
        self._check_room(requests=1, size=min(request.content_length or 0, limits.body_bytes))
        with self._room() as take:
            try:
                body = await read_body(
                    request,
                    limits.body_bytes,
                    seconds=limits.body_seconds,
                    on_chunk=lambda size: take(0, size),
                )
            except Refused as refused:
                if refused.status == 413:
                    self.on_rejected("too_large")
                raise
            take(1, 0)
            try:
                # From here on the event is published even if the client disconnects.
                outcome = await self.publisher.publish(
                    body, event_id=event_id, headers=_trace_headers(request)
                )
            except InvalidEvent as error:
                raise Refused(400, error.detail, field=_field(error.detail)) from error
            except RecordTooLarge as error:
                raise Refused(413, str(error)) from error
            except PublishFailed as error:
                if request.transport is None or request.transport.is_closing():
                    logger.error(SENDER_LEFT, error)
                raise Refused(
                    503, str(error), retry_after=FAILED_RETRY_SECONDS, eventId=error.event_id
                ) from error
        return web.json_response(_result_fields(outcome), status=202)

    @contextmanager
    def _room(self) -> Iterator[Callable[[int, int], None]]:
        """Reserve room until the event is durable, even if the client disconnects.

        Yields a function that reserves room for events and bytes, or raises ``Refused``. Only
        received bytes take room: a slow or silent client does not block others.
        """
        limits = self.limits
        taken_requests = taken_bytes = 0

        def take(requests: int, size: int) -> None:
            nonlocal taken_requests, taken_bytes
            self._check_room(requests, size)
            self._requests += requests
            self._bytes += size
            taken_requests += requests
            taken_bytes += size

        try:
            yield take
        finally:
            self._requests -= taken_requests
            self._bytes -= taken_bytes
            if self._requests <= limits.requests // 2 and self._bytes <= limits.total_bytes // 2:
                self._full = False

    def _check_room(self, requests: int, size: int) -> None:
        limits = self.limits
        if (
            self._requests + requests <= limits.requests
            and self._bytes + size <= limits.total_bytes
        ):
            return
        if not self._full:  # once for a burst
            logger.warning(
                LogLine(
                    "Too many paid orders at once, refused with 429",
                    requests=self._requests,
                    bytes=self._bytes,
                )
            )
        self._full = True
        self.on_rejected("busy")
        raise Refused(429, "too many paid orders at once", retry_after=BUSY_RETRY_SECONDS)


def _check_type(request: web.Request) -> None:
    encoding = request.headers.get("Content-Encoding", "identity").lower()
    if request.content_type != "application/json":
        raise Refused(415, "Content-Type must be application/json")
    if (request.charset or "utf-8").lower() not in ("utf-8", "utf8"):
        raise Refused(415, "the charset must be utf-8")
    if encoding != "identity":
        raise Refused(415, "Content-Encoding must be identity: the body is published as it is")


def _event_id(request: web.Request) -> str | None:
    """Return the client's event id; raises ``Refused`` if its headers differ."""
    given = {value for name in ID_HEADERS for value in request.headers.getall(name, ())}
    if len(given) > 1:
        raise Refused(400, f"{' and '.join(ID_HEADERS)} differ", field=EVENT_ID_HEADER)
    if "" in given:
        raise Refused(400, "event-id is empty", field=EVENT_ID_HEADER)
    return next(iter(given), None)


def _trace_headers(request: web.Request) -> tuple[Header, ...]:
    """Return the request's trace context as headers of the record; empty unless it is valid."""
    headers = request.headers
    if TRACEPARENT not in headers:
        return ()
    trace = of_request(headers.getall(TRACEPARENT), headers.getall(TRACESTATE, ()))
    return trace.record_headers() if trace is not None else ()


def _result_fields(outcome: PublishResult) -> dict[str, Any]:
    if isinstance(outcome, Published):
        return {
            "status": "published",
            "topic": outcome.topic,
            "partition": outcome.partition,
            "offset": outcome.offset,
            "eventId": outcome.event_id,
        }
    return {
        "status": "saved",
        "id": outcome.row_id,
        "eventId": outcome.event_id,
        "reason": outcome.reason,
    }


def _field(detail: str) -> str | None:
    """Return the field that ``InvalidEvent`` names, such as ``orderItems[0].productId``.

    None if the whole value is wrong: not JSON, or not an object.
    """
    found = re.search(r" - at `\$\.?(.*?)`$", detail)
    path = found[1] if found else ""
    if missing := re.search(r"missing required field `(\w+)`", detail):
        return f"{path}.{missing[1]}".lstrip(".")
    if path:
        return path
    named = re.search(rf"(?:^|: )(paidAt|orderId|{EVENT_ID_HEADER}) must ", detail)
    return named[1] if named else None
