"""A user's mistake ends the start with one line, as text or in the log's JSON."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from order_relay.errors import InvalidConsumer, InvalidDatabaseUrl, InvalidSettings
from order_relay.settings.settings import load_log_format

logger = logging.getLogger(__name__)


@contextmanager
def mistakes_in_one_line() -> Iterator[None]:
    """Turn wrong settings and wrongly declared consumers into the end of the process.

    Raises:
        SystemExit: With the line as its code, which Python prints; with LOG_FORMAT=json with 1,
            and the line is logged.
    """
    try:
        yield
    except (InvalidSettings, InvalidDatabaseUrl, InvalidConsumer) as error:
        if load_log_format() == "json":
            logger.critical(str(error))
            raise SystemExit(1) from None
        raise SystemExit(str(error)) from None
