"""The ``event-id`` header of a row: the same at every attempt, whoever wrote the row."""

from __future__ import annotations

import uuid

from order_relay.fallback.store import FallbackRow
from order_relay.model.headers import EVENT_ID_HEADER, Header

_NAMESPACE = uuid.UUID("8f1d2f0e-3a5e-4d0c-9b55-0d5f2c1b7a6e")


def with_event_id(row: FallbackRow) -> tuple[Header, ...]:
    """Return a row's headers with an event id: its own, or one made from what never changes.

    Rows written by plain SQL need not bring one. Ids of two databases overlap, so that the time
    and the record itself are part of it.
    """
    given = [value for name, value in row.headers if name == EVENT_ID_HEADER]
    if given and given[-1]:  # of several the last one counts
        return row.headers
    others = tuple(header for header in row.headers if header[0] != EVENT_ID_HEADER)
    parts = (
        row.topic.encode(),
        str(row.id).encode(),
        row.created_at.isoformat().encode(),
        row.key or b"",
        row.payload or b"",
    )
    name = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    return (*others, (EVENT_ID_HEADER, str(_uuid5(name)).encode()))


def _uuid5(name: bytes) -> uuid.UUID:
    return uuid.uuid5(_NAMESPACE, name.hex())
