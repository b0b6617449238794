"""A record's headers: what they are, and which names they may have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

EVENT_ID_HEADER = "event-id"

# Name and value; a value may be null, a name may come twice.
Header: TypeAlias = tuple[str, bytes | None]
Headers: TypeAlias = Sequence[Header]


def name_problem(name: str) -> str:
    """Return why a header cannot have this name; empty if it can."""
    if "\0" in name:
        return f"the header {name!a} has a zero character in its name"
    try:
        name.encode()
    except UnicodeEncodeError:
        return f"the header {name!a} has a lone surrogate in its name"
    return ""
