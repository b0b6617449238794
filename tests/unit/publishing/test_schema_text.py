"""Bytes and headers as stored in text columns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from order_relay.fallback.sql.schema import headers_from_text, headers_to_text
from order_relay.model.byte_text import clean_text, from_text, to_text

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
headers = st.lists(st.tuples(names, st.none() | st.binary())).map(tuple)


@given(st.none() | st.binary() | st.text().map(lambda text: text.encode("utf-8", "replace")))
def test_bytes_come_back_exactly(value: bytes | None) -> None:
    """The text in the column gives any bytes back, and any database can hold it."""
    text = to_text(value)
    assert from_text(text) == value
    assert text is None or ("\0" not in text and text.encode().decode() == text)


@pytest.mark.parametrize("text", ['{"a":"x"}', "42", "", "\\", "\\xyz", "\\x1", "größe", "\\X41"])
def test_text_stays_text(text: str) -> None:
    """Text that a person or another program writes means its own UTF-8 bytes."""
    assert from_text(text) == text.encode()


def test_hexadecimal_means_bytes() -> None:
    """PostgreSQL's notation is read in upper or lower case; a BLOB of SQLite is itself."""
    assert from_text("\\x00fF") == b"\x00\xff"
    assert from_text(b"\x00\xff") == b"\x00\xff"
    assert to_text(b"\\x41") == "\\x5c783431"


@given(headers)
def test_headers_come_back_exactly(given: tuple[tuple[str, bytes | None], ...]) -> None:
    """Order, duplicates, nulls and bytes of headers survive."""
    assert headers_from_text(headers_to_text(given)) == given


def test_headers_as_an_object() -> None:
    """Rows written by hand may have an object."""
    assert headers_from_text('{"event-id":"7","x":null}') == (("event-id", b"7"), ("x", None))
    assert headers_from_text(None) == headers_from_text("") == ()


@pytest.mark.parametrize("text", ["{", "7", '"x"', '{"a":1}', '[["a"]]', "[[1,null]]", "[" * 99999])
def test_other_headers_are_named_as_wrong(text: str) -> None:
    """Anything else is a ValueError, which makes the row FAILED."""
    with pytest.raises(ValueError):  # noqa: PT011 - its text comes from several places
        headers_from_text(text)


@given(st.text())
def test_any_error_text_can_be_stored(words: str) -> None:
    """An error message with zero characters or lone surrogates does not break the commit."""
    kept = clean_text(words)
    assert kept is not None
    assert "\0" not in kept
    kept.encode()
