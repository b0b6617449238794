"""Keeps a client's complaints readable: an outage says each thing now and then, not each time.

A Kafka client that cannot reach its brokers logs every attempt, hundreds of lines a second. Each
distinct message of those clients passes once in ``INTERVAL_SECONDS`` and then says how many like
it were left out. The relay's own lines always pass.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from order_relay.logs.log_line import CONSUMER, LogLine, printable

INTERVAL_SECONDS = 30.0
# Names of loggers, and of their children, whose messages repeat.
# This application's own loggers, and those of a team's consumers.
OURS = ("order_relay.", "order_relay_consumers.", "app.", "agents.", "tables.")
CLIENTS = (
    "aiokafka",
    "order_relay.kafka.producer",
    "order_relay.kafka.consumer",
    "faust.transport",
)


class RepeatFilter(logging.Filter):
    """Lets one record of each message template of the clients pass per interval."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with nothing said. The clock is monotonic, in seconds."""
        super().__init__()
        self._clock = clock
        self._said: dict[tuple[str, int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the record passes; adds to its text how many were left out before it."""
        if record.levelno < logging.WARNING or not _is_client(record.name):
            return True
        # The template, not the text: it is the same however the details vary.
        key = (record.name, record.levelno, _template(record))
        now = self._clock()
        said_at, left_out = self._said.get(key, (float("-inf"), 0))
        if now - said_at < INTERVAL_SECONDS:
            self._said[key] = (said_at, left_out + 1)
            return False
        self._said[key] = (now, 0)
        if left_out and isinstance(record.msg, LogLine):
            record.msg = record.msg.also(left_out=left_out)
        elif left_out:
            record.msg = f"{record.getMessage()} ({left_out} more like it since)"
            record.args = ()
        return True


class ConsumerFilter(logging.Filter):
    """Notes with each record whose work it was: of which consumer."""

    def __init__(self, *, in_text: bool) -> None:
        """Write it into the text of our own lines, too, if ``in_text``: there are several."""
        super().__init__()
        self._in_text = in_text

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass."""
        consumer = CONSUMER.get(None)
        if consumer is None or hasattr(record, "consumer"):
            return True
        record.consumer = consumer
        if self._in_text and record.name.startswith(OURS):
            if isinstance(record.msg, LogLine):
                record.msg = record.msg.also(consumer=consumer)
            else:
                record.msg, record.args = f"{record.getMessage()} consumer={consumer}", ()
        return True


class OneLineFilter(logging.Filter):
    """Escapes control characters in our own lines: errors hold topics and the like of rows."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass, on one line if it is ours; a ``LogLine`` sees to itself."""
        ours = record.name.startswith(OURS)
        if ours and not isinstance(record.msg, LogLine):
            message = record.getMessage()
            if not message.isprintable():
                record.msg, record.args = printable(message), ()
        return True


def install(*, several_consumers: bool = False) -> None:
    """Put the filters on every handler of the root logger."""
    # At INFO it names the user with every connection, of which brokers may end one every few
    # minutes; at DEBUG it would show passwords and tokens.
    logging.getLogger("aiokafka.conn").setLevel(logging.WARNING)
    repeat_filter = RepeatFilter()
    for handler in logging.getLogger().handlers:
        handler.addFilter(repeat_filter)
        handler.addFilter(ConsumerFilter(in_text=several_consumers))
        handler.addFilter(OneLineFilter())


def _is_client(name: str) -> bool:
    return any(name == client or name.startswith(f"{client}.") for client in CLIENTS)


def _template(record: logging.LogRecord) -> str:
    if isinstance(record.msg, LogLine):
        return record.msg.phrase
    # librdkafka has one template for everything; its first argument is the kind of event.
    kind = record.args[0] if isinstance(record.args, tuple) and record.args else ""
    return f"{record.msg} {kind}" if str(record.msg).startswith("%s [") else str(record.msg)
