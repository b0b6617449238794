"""Secrets are taken out of text that comes from outside."""

from hypothesis import given
from hypothesis import strategies as st

from app.main import redact


def test_every_secret_is_taken_out_wherever_it_stands() -> None:
    """All occurrences of all secrets are replaced; the rest of the text stays."""
    text = redact("Bearer t0ken refused: t0ken, password pa$$", ("t0ken", "pa$$"))

    assert text == "Bearer [redacted] refused: [redacted], password [redacted]"


def test_without_secrets_nothing_changes() -> None:
    """Where no secret is set, text passes as it is."""
    assert redact("as it is", ()) == "as it is"


@given(st.permutations(["abc", "abcdef", "bcd", "f"]))
def test_a_secret_within_a_secret_leaves_no_rest(secrets: list[str]) -> None:
    """When one secret is part of another, no piece of the longer one stays."""
    assert redact("x abcdef x", tuple(secrets)) == "x [redacted] x"
