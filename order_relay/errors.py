"""Every failure the relay raises, in one tree.

    RelayError
    ├── RetryableError          trying again later may work
    │   ├── PublishRefused          Kafka did not acknowledge a record
    │   ├── KafkaUnavailable        no broker can be reached
    │   ├── AccessTokenUnavailable  the identity provider gives no token for Kafka
    │   ├── DatabaseUnavailable     the database did not do what it was asked
    │   │   └── DatabaseReplaced        its file was deleted or replaced while it was open
    │   └── PublishFailed           an event is neither in Kafka nor in the database
    └── PermanentError          trying again cannot work
        ├── InvalidSettings         a setting is wrong; the start ends
        ├── InvalidConsumer         a consumer is declared wrongly; the start ends
        ├── InvalidEvent            a record is not an ORDER_PAID event
        ├── RecordTooLarge          a record is over the broker's limit
        ├── TopicUnusable           a topic does not do what a command needs of it
        ├── InvalidDatabaseUrl      DATABASE_URL names no database that can be used
        └── DatabaseTooNew          a newer version of the relay has migrated the database

What a handler raises to say more than "it failed" is no failure of the relay:

    HandlerSignal
    ├── Reject          the record is at fault: dead letter at once
    ├── RetryLater      the target is busy: neither its fault nor the record's
    └── Unavailable     the target refuses us: an outage, counts against the target only

Any other exception of a handler is a failed attempt, which is retried.

Expected outcomes (delivered, rejected, dead-lettered) are values, not errors: see
``order_relay.delivery``.
"""

from __future__ import annotations

from dataclasses import dataclass


class RelayError(Exception):
    """Root of the tree."""


class RetryableError(RelayError):
    """Trying again later may work."""


class PermanentError(RelayError):
    """Trying again cannot work."""


@dataclass(eq=False)
class PublishRefused(RetryableError):
    """Kafka did not acknowledge a record."""

    topic: str
    reason: str  # Kafka's own words, such as ``Local: Message timed out``
    code: str = ""  # the name of Kafka's error code, such as ``_MSG_TIMED_OUT``, if there is one

    def __str__(self) -> str:
        return f"Kafka refused a record for topic {self.topic}: {self.reason}"


@dataclass(eq=False)
class KafkaUnavailable(RetryableError):
    """No broker answered."""

    servers: str  # the bootstrap servers that were tried
    reason: str  # what the last attempt said

    def __str__(self) -> str:
        return f"Kafka cannot be reached at {self.servers}: {self.reason}"


@dataclass(eq=False)
class AccessTokenUnavailable(RetryableError):
    """The identity provider gives no token for Kafka."""

    url: str  # where it was asked
    reason: str  # what it said, or why it did not answer; no secret is in it

    def __str__(self) -> str:
        return f"no access token from KAFKA_SASL_OAUTH_TOKEN_URL={self.url}: {self.reason}"


@dataclass(eq=False)
class DatabaseUnavailable(RetryableError):
    """The database did not do what it was asked."""

    reason: str  # the driver's own words, on one line
    statement_refused: bool = False  # the database works, and refused what it was given

    def __str__(self) -> str:
        return f"the database refused: {self.reason}"


class DatabaseReplaced(DatabaseUnavailable):
    """The file of the database, or the log that belongs to it, was replaced while it was open."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} was deleted or replaced while it was open")
        self.path = path


@dataclass(eq=False)
class PublishFailed(RetryableError):
    """Neither Kafka nor the database has acknowledged an event: the caller must keep it.

    It may arrive all the same, if only the answer is lost or late.
    """

    event_id: str  # a repeated publish should carry the same
    kafka_error: BaseException  # why Kafka does not have it
    database_error: BaseException  # why the database does not

    def __str__(self) -> str:
        reasons = f"{self.kafka_error}; {self.database_error}"
        return f"event {self.event_id} was neither published nor saved: {reasons}"


class InvalidSettings(PermanentError):
    """One or more settings are wrong; the message names each, its value and what is allowed."""


class InvalidConsumer(PermanentError):
    """A consumer is declared wrongly; the message names what is wrong and what is allowed."""


@dataclass(eq=False)
class InvalidEvent(PermanentError):
    """A record's value is not an ORDER_PAID event."""

    reason: str  # for ``dlq-reason``: tombstone, invalid_utf8, invalid_json or invalid_event
    detail: str  # what is wrong, in words

    def __str__(self) -> str:
        return self.detail


@dataclass(eq=False)
class RecordTooLarge(PermanentError):
    """A record is over the broker's or the topic's size limit."""

    topic: str
    size_bytes: int

    def __str__(self) -> str:
        return f"a record of {self.size_bytes} bytes is too large for topic {self.topic}"


@dataclass(eq=False)
class TopicUnusable(PermanentError):
    """A topic is missing, or does not do what it was asked."""

    topic: str
    reason: str  # Kafka's own words
    code: str = ""  # the name of Kafka's error code, if there is one

    def __str__(self) -> str:
        return f"topic {self.topic} cannot be used: {self.reason}"


class InvalidDatabaseUrl(PermanentError):
    """DATABASE_URL names no database that can be used; the message says what is allowed."""


@dataclass(eq=False)
class DatabaseTooNew(PermanentError):
    """A newer version of the relay has migrated the database."""

    revision: str  # the database's revision, which this version does not know
    known: str  # the newest revision that this version knows

    def __str__(self) -> str:
        return (
            f"the database is at revision {self.revision}, which this version of the relay does "
            f"not know (its newest is {self.known}): run the newer version, or restore a backup"
        )


# --- raised by handlers -----------------------------------------------------------------------


class HandlerSignal(Exception):
    """Root of what a handler may raise on purpose."""


class Reject(HandlerSignal):
    """The record can never be handled: it goes to the dead-letter topic at once."""

    def __init__(self, reason: str = "") -> None:
        """Reject the record; ``reason`` is written into its dead letter."""
        super().__init__(reason or "the handler rejected the record")


class RetryLater(HandlerSignal):
    """The target asks for a pause: no attempt is counted, all of the consumer slows down.

    Attributes:
        seconds: How long to wait; 0: as long as the consumer thinks best.
    """

    seconds: float = 0.0  # also of a subclass that does not call ours

    def __init__(self, seconds: float = 0.0, reason: str = "") -> None:
        """Come again after ``seconds``, 60 at most."""
        super().__init__(reason or "the handler asked to retry later")
        self.seconds = seconds


class Unavailable(HandlerSignal):
    """The target takes nothing from us at all, such as with wrong credentials.

    Nothing is counted against the record. Once several fail so the breaker opens, and one record
    after the other is tried until the target works again.
    """

    def __init__(self, reason: str = "") -> None:
        """Say that the target is not available, and why."""
        super().__init__(reason or "the handler says that its target is unavailable")
