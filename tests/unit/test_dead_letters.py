"""Dead letters: Spring's headers in Spring's byte formats, ours, and the record's own."""

import struct
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from order_relay.delivery.dead_letters import (
    MAX_TEXT_BYTES,
    DeadLetter,
    Headers,
    dead_letter_headers,
    drop_long_headers,
)
from tests.support.fakes import record

LETTER = DeadLetter(
    record=record(7, partition=2),
    reason="retries_exhausted",
    message="HTTP 503: try later",
    error_type="order_relay.RetriesExhausted",
    attempts=4,
    failed_at=datetime(2025, 12, 19, 10, 30, 0, 123_456, tzinfo=UTC),
    cause_type="aiohttp.ClientOSError",
    http_status=503,
)


def _headers(letter: DeadLetter) -> Headers:
    return dead_letter_headers(letter, "logging-consumer-group", "order_logging")


def _with_headers(*headers: tuple[str, bytes | None]) -> Headers:
    return _headers(replace(LETTER, record=record(7, headers=headers)))


def test_all_headers_of_a_letter() -> None:
    """A letter carries the event's id, Spring's headers and ours, each exactly once."""
    assert _headers(LETTER) == [
        ("event-id", b"order-paid-events-2-7"),
        # As Spring Kafka's DeadLetterPublishingRecoverer writes them: ByteBuffer's big-endian
        # numbers, UTF-8 text, and Kafka's names for the types of timestamps.
        ("kafka_dlt-original-topic", b"order-paid-events"),
        ("kafka_dlt-original-partition", b"\x00\x00\x00\x02"),
        ("kafka_dlt-original-offset", b"\x00\x00\x00\x00\x00\x00\x00\x07"),
        ("kafka_dlt-original-timestamp", (1_766_140_200_000).to_bytes(8, "big")),
        ("kafka_dlt-original-timestamp-type", b"CreateTime"),
        ("kafka_dlt-original-consumer-group", b"logging-consumer-group"),
        ("kafka_dlt-exception-fqcn", b"order_relay.RetriesExhausted"),
        ("kafka_dlt-exception-cause-fqcn", b"aiohttp.ClientOSError"),
        ("kafka_dlt-exception-message", b"HTTP 503: try later"),
        ("kafka_dlt-exception-stacktrace", b"order_relay.RetriesExhausted: HTTP 503: try later"),
        ("dlq-consumer", b"order_logging"),
        ("dlq-reason", b"retries_exhausted"),
        ("dlq-attempts", b"4"),
        ("dlq-failed-at", b"2025-12-19T10:30:00.123+00:00"),
        ("dlq-redrives", b"0"),
        ("dlq-http-status", b"503"),
    ]


def test_what_is_not_known_is_left_out() -> None:
    """Without an answer there is no status; without an inner error, no cause."""
    names = [name for name, _ in _headers(replace(LETTER, http_status=None, cause_type=None))]

    assert "dlq-http-status" not in names
    assert "kafka_dlt-exception-cause-fqcn" not in names
    assert len(names) == 15


@given(st.integers(0, 2**31 - 1), st.integers(0, 2**63 - 1), st.integers(-1, 2**63 - 1))
def test_numbers_are_javas(partition: int, offset: int, timestamp_ms: int) -> None:
    """Every partition, offset and timestamp that Kafka knows fits, big-endian."""
    position = structs.replace(
        LETTER.record, partition=partition, offset=offset, timestamp_ms=timestamp_ms
    )
    headers = dict(_headers(replace(LETTER, record=position)))

    read = [
        struct.unpack(kind, headers[f"kafka_dlt-original-{name}"] or b"")
        for kind, name in [(">i", "partition"), (">q", "offset"), (">q", "timestamp")]
    ]
    assert read == [(partition,), (offset,), (timestamp_ms,)]


@pytest.mark.parametrize(
    ("code", "name"), [(0, b"CreateTime"), (1, b"LogAppendTime"), (-1, b"NoTimestampType")]
)
def test_the_types_of_timestamps(code: int, name: bytes) -> None:
    """Types of timestamps are named as Java's TimestampType prints itself."""
    letter = replace(LETTER, record=structs.replace(LETTER.record, timestamp_type=code))

    assert dict(_headers(letter))["kafka_dlt-original-timestamp-type"] == name


def test_the_records_own_headers_stay() -> None:
    """They come first, in their order, duplicates and nulls included."""
    own: list[tuple[str, bytes | None]] = [
        ("trace", b"1"), ("b", b"\x00\xff"), ("trace", b"2"), ("empty", b""), ("null", None),
    ]  # fmt: skip

    assert _with_headers(*own)[:5] == own


def test_the_events_id_is_kept() -> None:
    """The letter has the event's id, once, and redrives keep it."""
    headers = _with_headers(("event-id", b"old"), ("a", b"1"), ("event-id", b"pay-7"))

    assert headers[0] == ("a", b"1")
    assert [value for name, value in headers if name == "event-id"] == [b"pay-7"]


def test_headers_of_an_earlier_dead_letter_are_replaced() -> None:
    """A record that was dead-lettered before has only the new ones, and counts its redrives."""
    earlier = [(name, b"earlier") for name, _ in _headers(LETTER)]

    headers = _with_headers(*earlier, ("dlq-redrives", b"2"), ("kafka_dlt-original-future", b"x"))

    names = [name for name, _ in headers]
    assert len(names) == len(set(names))
    assert "kafka_dlt-original-future" not in names
    assert dict(headers)["dlq-redrives"] == b"2"
    assert [value for name, value in headers if name != "event-id"].count(b"earlier") == 0


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"))
    | st.text("\u20ac\U0001f600a", min_size=600, max_size=3000)
)
def test_texts_are_bounded(text: str) -> None:
    """Long messages are cut between characters; the beginning is kept."""
    headers = dict(_headers(replace(LETTER, message=text)))

    for name in ("kafka_dlt-exception-message", "kafka_dlt-exception-stacktrace"):
        value = headers[name] or b""
        assert len(value) <= MAX_TEXT_BYTES + 100
        told = value.decode().removeprefix("order_relay.RetriesExhausted: ")
        assert text.startswith(told.removesuffix("\u2026"))
        assert told == text or len(value) > MAX_TEXT_BYTES - 4


def test_text_that_is_not_unicode_is_kept() -> None:
    """A lone surrogate, as in errors of the file system, does not stop a letter."""
    assert dict(_headers(replace(LETTER, message="a\udc80b")))["kafka_dlt-exception-message"] == (
        b"a?b"
    )


def test_a_zero_character_in_a_message_is_written_out() -> None:
    """Otherwise the whole message would be shown, and filtered, as hexadecimal digits."""
    headers = dict(_headers(replace(LETTER, message="HTTP 422: a\0b")))
    assert headers["kafka_dlt-exception-message"] == rb"HTTP 422: a\x00b"


def test_a_zero_character_in_a_name_is_written_out() -> None:
    """Kafka's client would cut the name off there, and two names might become one."""
    assert (r"a\x00b", b"1") in _with_headers(("a\0b", b"1"))


def test_the_smallest_letter_keeps_all_but_the_long_texts() -> None:
    """A letter that is too large keeps all that is needed to find and redrive it."""
    left = drop_long_headers(_headers(LETTER))

    assert {name for name, _ in _headers(LETTER)} - {name for name, _ in left} == {
        "kafka_dlt-exception-message",
        "kafka_dlt-exception-stacktrace",
    }


def test_the_time_is_utc() -> None:
    """In any zone, the time of failure is written in UTC, in milliseconds."""
    seoul = datetime(2025, 12, 19, 19, 30, tzinfo=timezone(timedelta(hours=9)))

    assert dict(_headers(replace(LETTER, failed_at=seoul)))["dlq-failed-at"] == (
        b"2025-12-19T10:30:00.000+00:00"
    )
