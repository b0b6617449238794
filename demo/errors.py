"""The one failure of the quickstart: it cannot run, or cannot go on."""

from __future__ import annotations

from order_relay.errors import PermanentError


class CannotRun(PermanentError):
    """The quickstart cannot start or go on; the message is one line that says what to do."""
