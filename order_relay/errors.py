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
    ├── RetryLater      the target is busy: counts against nobody
    └── Unavailable     the target refuses us: an outage, counts against the target only

Any other exception of a handler is a failed attempt, which is retried.

Expected outcomes (delivered, rejected, dead-lettered) are values, not errors: see
``order_relay.delivery``.
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
        code: The name of Kafka's error code, such as ``_MSG_TIMED_OUT``; empty where there is none.
    """

    def __init__(self, topic: str, reason: str, code: str = "") -> None:
        super().__init__(f"Kafka refused a record for topic {topic}: {reason}")
        self.topic = topic
        self.reason = reason
        self.code = code


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


class AccessTokenUnavailable(RetryableError):
    """The identity provider gives no token for Kafka.

    Attributes:
        url: Where it was asked.
        reason: What it said, or why it did not answer; no secret is in it.
    """

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"no access token from KAFKA_SASL_OAUTH_TOKEN_URL={url}: {reason}")
        self.url = url
        self.reason = reason


class DatabaseUnavailable(RetryableError):
    """The database did not do what it was asked.

    Attributes:
        reason: The driver's own words, on one line.
        statement_refused: The database works, and refused what it was given.
    """

    def __init__(self, reason: str, *, statement_refused: bool = False) -> None:
        super().__init__(f"the database refused: {reason}")
        self.reason = reason
        self.statement_refused = statement_refused


class DatabaseReplaced(DatabaseUnavailable):
    """The file of the database was deleted or replaced while it was open.

    Attributes:
        path: The file, or the log that belongs to it.
    """

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} was deleted or replaced while it was open")
        self.path = path


class PublishFailed(RetryableError):
    """An event is neither in Kafka nor in the database: the caller must keep it.

    Attributes:
        event_id: The event's id; a repeated publish should carry the same.
        kafka_error: Why Kafka does not have it.
        database_error: Why the database does not.
    """

    def __init__(
        self, event_id: str, kafka_error: BaseException, database_error: BaseException
    ) -> None:
        super().__init__(
            f"event {event_id} was neither published nor saved: {kafka_error}; {database_error}"
        )
        self.event_id = event_id
        self.kafka_error = kafka_error
        self.database_error = database_error


class InvalidSettings(PermanentError):
    """One or more settings are wrong; the message names each, its value and what is allowed."""


class InvalidConsumer(PermanentError):
    """A consumer is declared wrongly; the message names what is wrong and what is allowed."""


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


class TopicUnusable(PermanentError):
    """A topic is missing, or does not do what it was asked.

    Attributes:
        topic: The topic's name.
        reason: Kafka's own words.
    """

    def __init__(self, topic: str, reason: str) -> None:
        super().__init__(f"topic {topic} cannot be used: {reason}")
        self.topic = topic
        self.reason = reason


class InvalidDatabaseUrl(PermanentError):
    """DATABASE_URL names no database that can be used; the message says what is allowed."""


class DatabaseTooNew(PermanentError):
    """A newer version of the relay has migrated the database.

    Attributes:
        revision: The database's revision, which this version does not know.
        known: The newest revision that this version knows.
    """

    def __init__(self, revision: str, known: str) -> None:
        super().__init__(
            f"the database is at revision {revision}, which this version of the relay does not "
            f"know (its newest is {known}): run the newer version, or restore a backup"
        )
        self.revision = revision
        self.known = known


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
