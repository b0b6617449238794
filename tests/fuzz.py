"""Searching at random: a plugin that plays the properties again and again, each time anew.

`make fuzz SECONDS=300` loads it. The suite itself plays the same examples every time; what is found
here is printed with its blob, and belongs into the suite as an ``@example``.
"""

from __future__ import annotations

import time
from itertools import cycle

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that says how long."""
    parser.addoption("--fuzz-seconds", type=float, required=True, help="how long to search")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Run the chosen properties in turn until the time is over, or one fails (with ``-x``)."""
    if session.config.option.collectonly or not session.items:
        return None
    deadline = time.monotonic() + session.config.getoption("--fuzz-seconds")
    items = session.items
    for item, following in zip(cycle(items), cycle([*items[1:], items[0]]), strict=True):
        # What pytest-rerunfailures does before it runs an item again.
        item._initrequest()  # type: ignore[attr-defined]
        last = time.monotonic() > deadline
        session.config.hook.pytest_runtest_protocol(item=item, nextitem=None if last else following)
        if last or session.shouldfail or session.shouldstop:
            return True
    return True
