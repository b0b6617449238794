r"""Bytes as text, for people and for SQL columns.

Text that is UTF-8 is kept as it is; other bytes are written in PostgreSQL's hexadecimal
notation, ``\x`` and two digits a byte.
"""

from __future__ import annotations

import re

_HEX = re.compile(r"\\x((?:[0-9a-fA-F]{2})*)")


def to_text(value: bytes | None) -> str | None:
    """Return bytes as they stand in a text column; ``from_text`` gives the same bytes back."""
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
    r"""Return the bytes that a column means.

    Text is UTF-8, but for ``\x`` and hexadecimal digits. SQLite keeps a BLOB where one was
    written, whatever the column's type; it is taken as it is.
    """
    if value is None or isinstance(value, bytes):
        return value
    found = _HEX.fullmatch(value)
    return bytes.fromhex(found[1]) if found else str(value).encode("utf-8", "surrogatepass")


def clean_text(value: str | None) -> str | None:
    """Return words as every database can hold them."""
    return None if value is None else value.replace("\0", "\\0").encode("utf-8", "replace").decode()
