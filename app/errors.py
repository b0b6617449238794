"""Every failure the relay raises, in one tree.

    RelayError
    ├── RetryableError          trying again later may work
    │   ├── PublishRefused          Kafka did not acknowledge a record
    │   └── KafkaUnavailable        no broker can be reached
    └── PermanentError          trying again cannot work
        ├── InvalidSettings         a setting is wrong; the start ends
        ├── InvalidEvent            a record is not an ORDER_PAID event
        └── RecordTooLarge          a record is over the broker's limit

Expected outcomes (delivered, rejected, dead-lettered) are values, not errors: see
``app.delivery``.
"""

from __future__ import annotations


class RelayError(Exception):
    """Root of the tree."""


class RetryableError(RelayError):
    """Trying again later may work."""


class PermanentError(RelayError):
    """Trying again cannot work."""


class PublishRefused(RetryableError):
    """Kafka did not acknowledge a record.

    Attributes:
        topic: The topic the record was meant for.
        reason: Kafka's own words, such as ``Local: Message timed out``.
    """

    def __init__(self, topic: str, reason: str) -> None:
        super().__init__(f"Kafka refused a record for topic {topic}: {reason}")
        self.topic = topic
        self.reason = reason


class KafkaUnavailable(RetryableError):
    """No broker answered.

    Attributes:
        servers: The bootstrap servers that were tried.
        reason: What the last attempt said.
    """

    def __init__(self, servers: str, reason: str) -> None:
        super().__init__(f"Kafka cannot be reached at {servers}: {reason}")
        self.servers = servers
        self.reason = reason


class InvalidSettings(PermanentError):
    """One or more settings are wrong; the message names each, its value and what is allowed."""


class InvalidEvent(PermanentError):
    """A record's value is not an ORDER_PAID event.

    Attributes:
        reason: A short code for ``dlq-reason``: ``tombstone``, ``invalid_utf8``,
            ``invalid_json`` or ``invalid_event``.
        detail: What is wrong, in words.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class RecordTooLarge(PermanentError):
    """A record is over the broker's or the topic's size limit."""

    def __init__(self, topic: str, size_bytes: int) -> None:
        super().__init__(f"a record of {size_bytes} bytes is too large for topic {topic}")
        self.topic = topic
        self.size_bytes = size_bytes
