"""An entry of the deliveries table: the result of one order's latest record."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec

from order_relay.delivery.outcome import Outcome
from order_relay.model.headers import EVENT_ID_HEADER
from order_relay.model.order_paid import OrderId, is_order_id
from order_relay.model.record import Record

# An order has one event, so there is hardly ever an earlier one.
MAX_EARLIER_EVENT_IDS = 32
MAX_ERROR_CHARACTERS = 500


class Entry(msgspec.Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """The result of one order's latest record; JSON in the changelog.

    Attributes:
        order_id: The order.
        state: The result.
        event_id: The record's event id (its ``Idempotency-Key``).
        attempts: Delivery attempts for it.
        topic: The record's topic.
        partition: Its partition.
        offset: Its offset.
        published_ms: The record's timestamp, milliseconds since the epoch; 0 without one.
        started_ms: When this worker's first attempt began, milliseconds since the epoch.
        finished_ms: When the record was finished, likewise; the retention counts from here.
        paid_at: The event's ``paidAt``, as it was written.
        last_error: The error of the last failed attempt; empty without one.
        http_status: The status of the target's last refusal; ``None`` without one.
        dead_letter_reason: The short code of the dead letter; empty if it was delivered.
        earlier_event_ids: The order's events that were delivered before, by event id; by
            ``<id>@<published_ms>`` where the record had no id of its own.
    """

    order_id: OrderId
    state: Literal["delivered", "dead_lettered"]
    event_id: str
    attempts: int
    topic: str
    partition: int
    offset: int
    finished_ms: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    started_ms: int = 0
    published_ms: int = 0
    paid_at: str = ""
    last_error: str = ""
    http_status: int | None = None
    dead_letter_reason: str = ""
    earlier_event_ids: tuple[str, ...] = ()

    def has_delivered(self, record: Record) -> bool:
        """Whether the record's event was delivered.

        A record without an event id of its own is recognized by its position and its timestamp:
        after a topic was made anew, other records have the same positions. Of a redriven record the
        entry has the copy's timestamp, which is later.
        """
        event_id = record.idempotency_key()
        if record.header(EVENT_ID_HEADER):
            same = self.event_id == event_id
        elif record.timestamp_ms > 0:
            same = self.event_id == event_id and (
                record.timestamp_ms == self.published_ms
                or (record.timestamp_ms < self.published_ms and not self._has_own_id)
            )
            event_id = f"{event_id}@{record.timestamp_ms}"
        else:
            return False
        return (same and self.state == "delivered") or event_id in self.earlier_event_ids

    @property
    def lasting_event_id(self) -> str:
        """The event id as ``earlier_event_ids`` of a later entry has it."""
        return f"{self.event_id}@{self.published_ms}" if self._has_own_id else self.event_id

    @property
    def _has_own_id(self) -> bool:
        """Whether the event id is the record's own position."""
        return self.event_id == f"{self.topic}-{self.partition}-{self.offset}"


encode_entry = msgspec.json.Encoder().encode
"""Returns an entry as it is in the changelog and the stores."""
_decoder = msgspec.json.Decoder(Entry)


def decode_entry(value: bytes) -> Entry | None:
    """Return the entry; ``None`` for bytes that this version cannot read."""
    try:
        return _decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def entry_key(order_id: OrderId) -> bytes:
    """Return the key of an order's entry; by default its records have the same key."""
    return str(order_id).encode()


def order_of_key(record: Record) -> OrderId | None:
    """Return the order id in a record's key, for records whose value has none that can be read."""
    if record.key is None:
        return None
    text = record.key.decode("utf-8", "replace")
    if not is_order_id(text):
        return None
    return int(text) if re.fullmatch(r"-?[1-9][0-9]{0,17}", text, re.ASCII) else text


def make_entry(
    record: Record, order_id: OrderId, outcome: Outcome, finished_ms: int, before: Entry | None
) -> Entry:
    """Return the entry of a finished record; ``before`` is the order's previous entry."""
    entry = Entry(
        order_id=order_id,
        state="delivered" if outcome.delivered else "dead_lettered",
        event_id=record.idempotency_key(),
        attempts=outcome.attempts,
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        finished_ms=finished_ms,
        started_ms=outcome.started_ms,
        published_ms=max(record.timestamp_ms, 0),
        paid_at=outcome.paid_at,
        last_error=outcome.last_error[:MAX_ERROR_CHARACTERS],
        http_status=outcome.http_status,
        dead_letter_reason=outcome.reason,
    )
    if before is None:
        return entry
    own, ids = entry.lasting_event_id, before.earlier_event_ids
    if before.state == "delivered":
        ids = (*ids, before.lasting_event_id)
    ids = tuple(one for one in ids if one != own)[-MAX_EARLIER_EVENT_IDS:]
    return msgspec.structs.replace(entry, earlier_event_ids=ids)
