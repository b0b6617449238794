"""The tree of errors: what may be retried, and the data that errors carry."""

import pytest

from order_relay import errors
from order_relay.errors import HandlerSignal, PermanentError, RelayError, RetryableError

RETRYABLE: dict[RelayError, str] = {
    errors.PublishRefused("dlq", "timed out"): "Kafka refused a record for topic dlq: timed out",
    errors.KafkaUnavailable("a:1", "refused"): "Kafka cannot be reached at a:1: refused",
    errors.AccessTokenUnavailable("https://identity/token", "refused"):
        "no access token from KAFKA_SASL_OAUTH_TOKEN_URL=https://identity/token: refused",
    errors.DatabaseUnavailable("locked", statement_refused=True): "the database refused: locked",
    errors.DatabaseReplaced("relay.db"):
        "the database refused: relay.db was deleted or replaced while it was open",
    errors.PublishFailed("id", OSError("no broker"), OSError("no database")):
        "event id was neither published nor saved: no broker; no database",
}  # fmt: skip
PERMANENT: dict[RelayError, str] = {
    errors.InvalidSettings("x"): "x",
    errors.InvalidConsumer("x"): "x",
    errors.InvalidEvent("tombstone", "no value"): "no value",
    errors.RecordTooLarge("dlq", 7): "a record of 7 bytes is too large for topic dlq",
    errors.TopicUnusable("dlq", "unknown"): "topic dlq cannot be used: unknown",
    errors.InvalidDatabaseUrl("x"): "x",
    errors.DatabaseTooNew("0009", "0001"):
        "the database is at revision 0009, which this version of the relay does not know (its "
        "newest is 0001): run the newer version, or restore a backup",
}  # fmt: skip


def test_every_error_is_on_one_branch() -> None:
    """Each error is retryable or permanent, never both, and all are of one tree."""
    assert all(isinstance(error, RetryableError) for error in RETRYABLE)
    assert all(isinstance(error, PermanentError) for error in PERMANENT)
    assert not [e for e in RETRYABLE if isinstance(e, PermanentError)]
    assert not [e for e in PERMANENT if isinstance(e, RetryableError)]
    known = {type(error) for error in RETRYABLE | PERMANENT}
    kinds = {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    }
    # The signals that handlers raise are not failures of the relay.
    named = {kind for kind in kinds if not issubclass(kind, HandlerSignal)}
    assert named == {*known, RelayError, RetryableError, PermanentError}


@pytest.mark.parametrize("error", RETRYABLE | PERMANENT, ids=lambda error: type(error).__name__)
def test_errors_say_what_they_are_about(error: RelayError) -> None:
    """The text has their data, which are attributes; the drawing has each."""
    assert str(error) == (RETRYABLE | PERMANENT)[error]
    assert f"── {type(error).__name__} " in (errors.__doc__ or "")
    texts = [str(value) for value in vars(error).values() if not isinstance(value, bool) and value]
    assert all(text in str(error) or text == "tombstone" for text in texts)
