"""The type of a record's headers, and the rules for their names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

EVENT_ID_HEADER = "event-id"

# Name and value. A value may be null, and a name may occur twice.
Header: TypeAlias = tuple[str, bytes | None]
Headers: TypeAlias = Sequence[Header]


def last_value(headers: Headers, name: str) -> bytes | None:
    """Return the last header of a name: Kafka's rule for duplicates (``lastHeader``)."""
    return next((value for given, value in reversed(headers) if given == name), None)


def name_problem(name: str) -> str:
    """Return why a header name is invalid; empty if it is valid."""
    if "\0" in name:
        return f"the header {name!a} has a zero character in its name"
    try:
        name.encode()
    except UnicodeEncodeError:
        return f"the header {name!a} has a lone surrogate in its name"
    return ""
