r"""Bytes as text, for people and for SQL columns.

UTF-8 text stays as it is. Other bytes are written in PostgreSQL's hexadecimal notation: ``\x`` and
two digits for each byte.
"""

from __future__ import annotations

import re

_HEX = re.compile(r"\\x((?:[0-9a-fA-F]{2})*)")


def to_text(value: bytes | None) -> str | None:
    """Return bytes as text for a column; ``from_text`` returns the same bytes again."""
    if value is None:
        return None
    # PostgreSQL's text cannot hold a zero character.
    if b"\0" not in value and not value.startswith(b"\\x"):
        try:
            return value.decode()
        except UnicodeDecodeError:
            pass
    return "\\x" + value.hex()


def from_text(value: str | bytes | None) -> bytes | None:
    r"""Return the bytes that a column's text stands for.

    Text is UTF-8, or ``\x`` and hexadecimal digits. SQLite may return a BLOB from a text column;
    its bytes are returned unchanged.
    """
    if value is None or isinstance(value, bytes):
        return value
    found = _HEX.fullmatch(value)
    return bytes.fromhex(found[1]) if found else str(value).encode("utf-8", "surrogatepass")


def clean_text(value: str | None) -> str | None:
    """Return text without the characters that some databases refuse."""
    return None if value is None else value.replace("\0", "\\0").encode("utf-8", "replace").decode()
