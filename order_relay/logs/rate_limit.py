"""Log filters: one limits repeated lines, one names the consumer, one escapes control characters.

A Kafka client that cannot reach its brokers logs every attempt, hundreds of lines a second.
OpenTelemetry logs every batch of spans that the collector did not accept. Each message of those
clients passes once in ``INTERVAL_SECONDS``, with the number of lines that were left out before it.
The relay's own lines always pass.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from weakref import WeakKeyDictionary

from order_relay.logs.log_line import CONSUMER, LogLine, printable

INTERVAL_SECONDS = 30.0
# Loggers of this product, and of consumers in CONSUMER_FOLDERS.
OURS = ("order_relay.", "order_relay_consumers.", "app.", "agents.", "tables.")
# Loggers whose messages repeat, with their children.
CLIENTS = (
    "aiokafka.",
    "order_relay.kafka.producer.",
    "order_relay.kafka.consumer.",
    "faust.transport.",
    "opentelemetry.",
)
# Our consumer's lines about lost records: each has the offsets by which they must be found.
OF_A_PARTITION = " partition=%d "


class RepeatFilter(logging.Filter):
    """Passes one record of each message template of the clients per interval."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with an empty history. ``clock`` is monotonic, in seconds."""
        super().__init__()
        self._clock = clock
        self._last_passed: dict[tuple[str, int, str], tuple[float, int]] = {}
        # Each handler of a logger asks about the same record.
        self._answered: WeakKeyDictionary[logging.LogRecord, bool] = WeakKeyDictionary()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record passes. Adds how many were left out before it."""
        passes = self._answered.get(record)
        if passes is None:
            passes = self._answered[record] = self._passes(record)
        return passes

    def _passes(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING or not f"{record.name}.".startswith(CLIENTS):
            return True
        if OF_A_PARTITION in str(record.msg):
            return True
        # The template, not the text, since details such as node ids vary.
        key = (record.name, record.levelno, _template(record))
        now = self._clock()
        passed_at, left_out = self._last_passed.get(key, (float("-inf"), 0))
        if now - passed_at < INTERVAL_SECONDS:
            self._last_passed[key] = (passed_at, left_out + 1)
            return False
        self._last_passed[key] = (now, 0)
        if left_out:
            _add(record, f"({left_out} more like it since)", left_out=left_out)
        return True


def name_consumer(record: logging.LogRecord, *, in_text: bool) -> bool:
    """Add the consumer that a record is about; a filter that passes all.

    With ``in_text`` the text of our own lines has it, too: the worker runs several.
    """
    consumer = CONSUMER.get(None)
    if consumer is not None and not hasattr(record, "consumer"):
        record.consumer = consumer
        if in_text and record.name.startswith(OURS):
            _add(record, f"consumer={consumer}", consumer=consumer)
    return True


def escape_controls(record: logging.LogRecord) -> bool:
    """Make our own line one line, since errors quote data from outside; a filter that passes all.

    A ``LogLine`` escapes its own fields.
    """
    if record.name.startswith(OURS) and not isinstance(record.msg, LogLine):
        record.msg, record.args = printable(record.getMessage()), ()
    return True


def install(*, several_consumers: bool = False) -> None:
    """Add the filters to every handler of the root logger."""
    # At INFO it logs the user of every new connection, and brokers may close connections every few
    # minutes. At DEBUG it would log passwords and tokens.
    logging.getLogger("aiokafka.conn").setLevel(logging.WARNING)
    repeat_filter = RepeatFilter()
    for handler in logging.getLogger().handlers:
        handler.addFilter(repeat_filter)
        handler.addFilter(partial(name_consumer, in_text=several_consumers))
        handler.addFilter(escape_controls)


def _template(record: logging.LogRecord) -> str:
    if isinstance(record.msg, LogLine):
        return record.msg.phrase
    # librdkafka uses one template for everything. Its first argument is the kind of event.
    kind = record.args[0] if isinstance(record.args, tuple) and record.args else ""
    return f"{record.msg} {kind}" if str(record.msg).startswith("%s [") else str(record.msg)


def _add(record: logging.LogRecord, text: str, **fields: object) -> None:
    """Add to a record's message: ``fields`` to a ``LogLine``, else ``text``."""
    if isinstance(record.msg, LogLine):
        record.msg.fields.update(fields)
    else:
        record.msg, record.args = f"{record.getMessage()} {text}", ()
