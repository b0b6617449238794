"""An ORDER_PAID event ready for Kafka: checked and encoded, with its key and its event id."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from order_relay.errors import InvalidEvent
from order_relay.fallback.store import NewMessage
from order_relay.model.events import decode_order_paid
from order_relay.model.headers import EVENT_ID_HEADER, Header, last_value, name_problem

MAX_EVENT_ID_LENGTH = 255


@dataclass(frozen=True, slots=True)
class OrderEvent:
    """A checked event.

    Attributes:
        event_id: The event's id, by which duplicates are recognized; also among the headers.
        key: The record's key.
        payload: The event's JSON, byte for byte.
        headers: All headers.
    """

    event_id: str
    key: bytes
    payload: bytes
    headers: tuple[Header, ...]

    def row(self, topic: str, max_retry: int) -> NewMessage:
        """Return the row that keeps it until ``topic`` has it."""
        return NewMessage(topic, self.key, self.payload, self.headers, max_retry=max_retry)


def order_event(
    event: Mapping[str, Any] | bytes,
    *,
    event_id: str | None = None,
    key: bytes | None = None,
    headers: Sequence[Header] = (),
) -> OrderEvent:
    """Check an event, and choose its key and its id.

    Args:
        event: The event, or its JSON as UTF-8.
        event_id: The event's id; by default the one in ``headers``, else a new one.
        key: The record's key; by default the order's id as text.
        headers: Further headers.

    Raises:
        InvalidEvent: It is not an ORDER_PAID event, or the event id, the key or a header is not
            allowed.
    """
    headers = _checked_headers(headers)
    # Kafka's client takes text, too, and encodes it; the fallback table does not. Such an event
    # would be lost only in an outage.
    if key is not None and not isinstance(key, bytes):
        raise InvalidEvent("invalid_event", f"the key must be bytes, not {type(key).__name__}")
    given_id: Any = event_id
    if given_id is not None and (not isinstance(given_id, str) or not given_id):
        raise InvalidEvent("invalid_event", f"event_id must be text, not {given_id!r:.40}")
    payload = event if isinstance(event, bytes) else encode_event(event)
    order = decode_order_paid(payload)
    given = last_value(headers, EVENT_ID_HEADER)
    chosen = event_id or (given.decode("utf-8", "replace") if given else str(uuid.uuid4()))
    if len(chosen) > MAX_EVENT_ID_LENGTH or not chosen.isprintable():
        raise InvalidEvent(
            "invalid_event", f"event-id must be 1 to {MAX_EVENT_ID_LENGTH} printable characters"
        )
    others = (header for header in headers if header[0] != EVENT_ID_HEADER)
    return OrderEvent(
        chosen,
        str(order.orderId).encode() if key is None else key,
        payload,
        (*others, (EVENT_ID_HEADER, chosen.encode())),
    )


def _checked_headers(headers: Any) -> list[Header]:
    try:
        found = [(name, value) for name, value in headers]
    except (TypeError, ValueError):
        text = f"headers must be pairs of a name and bytes, not {headers!r:.80}"
        raise InvalidEvent("invalid_event", text) from None
    for name, value in found:
        if not isinstance(name, str):
            raise InvalidEvent("invalid_event", f"a header's name must be text, not {name!r:.40}")
        if value is not None and not isinstance(value, bytes):
            text = f"the header {name!a} must be bytes, not {type(value).__name__}"
            raise InvalidEvent("invalid_event", text)
        if problem := name_problem(name):
            raise InvalidEvent("invalid_event", problem)
    return found


def encode_event(event: Mapping[str, Any]) -> bytes:
    """Return an event as compact UTF-8 JSON.

    Raises:
        InvalidEvent: It contains a value that JSON cannot represent.
    """
    try:
        given: Any = event
        if isinstance(given, Mapping) and not isinstance(given, dict):
            given = dict(given)
        try:
            encoded = msgspec.json.encode(given)
            if b"null" in encoded:  # msgspec's text for NaN and infinity, too
                json.dumps(msgspec.to_builtins(given), allow_nan=False)
            return encoded
        except UnicodeEncodeError:  # a lone surrogate, which JSON can only escape
            plain = msgspec.to_builtins(given)
            return json.dumps(plain, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise InvalidEvent("invalid_event", f"the event cannot be JSON: {error}") from error
