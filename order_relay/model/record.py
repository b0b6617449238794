"""A record of the source topic."""

from __future__ import annotations

import hashlib
import re
from urllib.parse import quote_from_bytes

import msgspec

from order_relay.model.headers import EVENT_ID_HEADER, last_value

# Visible ASCII except "%", and short enough for every HTTP server's header limit.
_PLAIN_ID = re.compile(rb"[!-$&-~]{1,256}")
# The end of an id that we make, after the topic's name. The deliveries table adds "@" and a time.
_POSITION = re.compile(rb"-(0|[1-9][0-9]{0,9})-(0|[1-9][0-9]{0,18})(?:@[0-9]*)?")
MAX_KEY_LENGTH = 768
_VISIBLE = "".join(map(chr, range(0x21, 0x7F))).replace("%", "")


class Record(msgspec.Struct, frozen=True, gc=False):
    """A record and its position.

    Attributes:
        topic: Source topic.
        partition: Partition in the source topic.
        offset: Offset in the partition.
        generation: The consumer group's generation in which it was read. Records of an older
            generation are not committed.
        key: The record's key, ``None`` for a record without one.
        value: The record's value, byte for byte; ``None`` for a tombstone.
        headers: All headers in their order, including duplicates.
        timestamp_ms: Milliseconds since the epoch.
        timestamp_type: 0 for the producer's time, 1 for the broker's (Kafka's own codes).
    """

    topic: str
    partition: int
    offset: int
    generation: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    timestamp_ms: int = 0
    timestamp_type: int = 0

    def header(self, name: str) -> bytes | None:
        """Return a header; see ``last_value``."""
        return last_value(self.headers, name)

    def event_id(self) -> bytes:
        """Return the id that all attempts, redrives and replays of this event share.

        It is the ``event-id`` header if there is one, else ``<topic>-<partition>-<offset>``.
        """
        return self._given_id() or self._own_id().encode()

    def idempotency_key(self) -> str:
        """Return the event id as an HTTP header value.

        Each event id has a key of its own, and always the same. Bytes that a header cannot contain
        are percent-encoded, and a very long id is replaced by its SHA-256.
        """
        event_id = self._given_id()
        if not event_id:
            return self._own_id()  # topic names are visible ASCII without "%"
        if _PLAIN_ID.fullmatch(event_id):
            return event_id.decode()
        encoded = quote_from_bytes(event_id, safe=_VISIBLE)
        if len(encoded) <= MAX_KEY_LENGTH:
            return encoded
        # Percent-encoding never makes "%s": no other id has this key.
        return f"%sha256-{hashlib.sha256(event_id).hexdigest()}"

    def claimed_position(self) -> tuple[int, int] | None:
        """Return the partition and offset that the ``event-id`` header refers to.

        ``None`` if it is not an id that we make for records of this topic.
        """
        given = self._given_id()
        topic = self.topic.encode()
        if not given or not given.startswith(topic):
            return None
        found = _POSITION.fullmatch(given, len(topic))
        return (int(found[1]), int(found[2])) if found else None

    def with_own_id(self) -> Record:
        """Return the record without its ``event-id`` header, so that its position is its id."""
        others = tuple(header for header in self.headers if header[0] != EVENT_ID_HEADER)
        return msgspec.structs.replace(self, headers=others)

    def _given_id(self) -> bytes | None:
        return self.header(EVENT_ID_HEADER) if self.headers else None

    def _own_id(self) -> str:
        return f"{self.topic}-{self.partition}-{self.offset}"

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.offset}"
