"""Secrets are removed from external text."""

import html
import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from order_relay.settings.secret_files import redact


def test_every_secret_is_taken_out_wherever_it_stands() -> None:
    """All occurrences of all secrets are replaced; the rest of the text stays."""
    text = redact("Bearer t0ken refused: t0ken, password pa$$", ("t0ken", "pa$$"))

    assert text == "Bearer [redacted] refused: [redacted], password [redacted]"
    assert redact("as it is", ()) == "as it is"


@given(st.permutations(["abc", "abcdef", "bcd", "f"]))
def test_a_secret_within_a_secret_leaves_no_rest(secrets: list[str]) -> None:
    """When one secret is part of another, no piece of the longer one stays."""
    assert redact("x abcdef x", tuple(secrets)) == "x [redacted] x"


SECRET = "ab/cd+12'\"<&>\\\u00e9\U0001f511="
AROUND = '\\"'  # what JSON puts around it


@pytest.mark.parametrize(
    "written",
    [
        json.dumps(SECRET),
        json.dumps(SECRET, ensure_ascii=False),
        json.dumps(json.dumps(json.dumps(SECRET))),
        json.dumps(SECRET).replace("/", "\\/"),
        json.dumps(SECRET).replace("=", "\\u003d").replace("&", "\\u0026"),
        json.dumps(SECRET).replace("+", "\\u002B").replace("<", "\\u003C"),
        quote(SECRET),
        quote(SECRET, safe="").lower(),
        html.escape(SECRET),
        html.escape(SECRET)
        .replace("=", "&#x3D;")
        .replace("/", "&#47;")
        .replace("&#x27;", "&apos;"),
    ],
)
def test_a_secret_is_found_however_it_is_written(written: str) -> None:
    """As in JSON (also of PHP, Gson and Go), URLs and HTML: nothing of it stays."""
    outside = redact(f"refused: {written.strip(AROUND)}, and so on", ("unused", SECRET))

    assert outside == "refused: [redacted], and so on"


@pytest.mark.parametrize("secret", ["\\" * 20 + "x", "\\/" * 10, "&" * 20, "%" * 20 + "x"])
@pytest.mark.parametrize("text", ["\\", "\\/", "&#0", "%", "\\u005c", "&#x0000005"])
def test_however_long_the_text_it_is_read_in_time(secret: str, text: str) -> None:
    """Long repetitions of almost the secret do not keep a worker busy."""
    outside = redact(text * 20_000 + secret, (secret,))

    assert outside.endswith("[redacted]")


@pytest.mark.parametrize("secret", ["a\\b", "\\\\server\\share", "x\\", "\\\\"])
@pytest.mark.parametrize("levels", [0, 1, 2, 3])
def test_backslashes_are_found_in_json_within_json(secret: str, levels: int) -> None:
    """Each level doubles them."""
    written = secret
    for _ in range(levels):
        written = json.dumps(written)[1:-1]

    assert redact(f"<{written}>", (secret,)) == "<[redacted]>"


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1))
def test_any_secret_in_json(secret: str) -> None:
    """A secret of any visible characters is found in JSON."""
    assert redact(json.dumps(secret)[1:-1], (secret,)) == "[redacted]"
