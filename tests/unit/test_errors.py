"""The tree of errors: what may be tried again, and the data that errors carry."""

import pytest

from order_relay import errors
from order_relay.errors import (
    AccessTokenUnavailable,
    DatabaseReplaced,
    DatabaseTooNew,
    DatabaseUnavailable,
    HandlerSignal,
    InvalidConsumer,
    InvalidDatabaseUrl,
    InvalidEvent,
    InvalidSettings,
    KafkaUnavailable,
    PermanentError,
    PublishFailed,
    PublishRefused,
    RecordTooLarge,
    RelayError,
    RetryableError,
    TopicUnusable,
)

RETRYABLE: list[RelayError] = [
    PublishRefused("dlq", "timed out"),
    KafkaUnavailable("a:1", "refused"),
    AccessTokenUnavailable("https://identity/token", "refused"),
    DatabaseUnavailable("locked"),
    DatabaseReplaced("relay.db"),
    PublishFailed("id", OSError("no broker"), OSError("no database")),
]
PERMANENT: list[RelayError] = [
    InvalidSettings("x"),
    InvalidConsumer("x"),
    InvalidEvent("tombstone", "x"),
    RecordTooLarge("dlq", 7),
    TopicUnusable("dlq", "unknown"),
    InvalidDatabaseUrl("x"),
    DatabaseTooNew("0009", "0001"),
]


def test_every_error_is_on_one_branch() -> None:
    """Each error is retryable or permanent, never both, and all are of one tree."""
    assert all(isinstance(error, RetryableError) for error in RETRYABLE)
    assert all(isinstance(error, PermanentError) for error in PERMANENT)
    assert not [e for e in RETRYABLE if isinstance(e, PermanentError)]
    assert not [e for e in PERMANENT if isinstance(e, RetryableError)]
    known = {type(error) for error in RETRYABLE + PERMANENT}
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type)}
    # What handlers raise to say more is no failure of the relay.
    named = {kind for kind in kinds if not issubclass(kind, HandlerSignal)}
    assert named == {*known, RelayError, RetryableError, PermanentError}


@pytest.mark.parametrize("name", [kind.__name__ for kind in map(type, RETRYABLE + PERMANENT)])
def test_every_error_stands_in_the_drawing(name: str) -> None:
    """The tree at the top of the module shows every error."""
    assert f"── {name}" in (errors.__doc__ or "")


def test_errors_say_and_carry_what_they_are_about() -> None:
    """The text names the topic, servers or size; the attributes hold them for code."""
    refused, unavailable = PublishRefused("dlq", "timed out"), KafkaUnavailable("a:1", "refused")
    large, invalid = RecordTooLarge("dlq", 7), InvalidEvent("tombstone", "no value")

    assert str(refused) == "Kafka refused a record for topic dlq: timed out"
    assert (refused.topic, refused.reason) == ("dlq", "timed out")
    assert str(unavailable) == "Kafka cannot be reached at a:1: refused"
    assert (unavailable.servers, unavailable.reason) == ("a:1", "refused")
    assert str(large) == "a record of 7 bytes is too large for topic dlq"
    assert (large.topic, large.size_bytes) == ("dlq", 7)
    assert str(invalid) == invalid.detail == "no value"
    assert invalid.reason == "tombstone"
