"""``LOG_FORMAT=json``: everything that the process logs, as one JSON object a line.

Each object has ``timestamp``, ``level``, ``logger``, ``process``, ``message``, ``exception`` if
there is one, and the line's own fields.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from order_relay.logs.log_line import LogLine

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

logger = logging.getLogger(__name__)

NAMES = {
    "asctime": "timestamp", "levelname": "level", "name": "logger", "exc_info": "exception",
}  # fmt: skip


class JsonLines(JsonFormatter):
    """Formats all log records as JSON: those of the relay and those of libraries."""

    converter = staticmethod(time.gmtime)  # UTC
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__(
            "%(asctime)s %(levelname)s %(name)s %(process)d %(message)s",
            rename_fields=NAMES,
            # A library's extra data of these names cannot replace ours.
            reserved_attrs=[*RESERVED_ATTRS, *NAMES.values()],
            json_default=str,
        )

    def add_fields(
        self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]
    ) -> None:
        """Fill in the fields of a line."""
        if isinstance(line := record.msg, LogLine):
            record.message = line.message
            message_dict |= {name: _plain(value) for name, value in line.fields.items()}
        super().add_fields(log_data, record, message_dict)

    def jsonify_log_record(self, log_data: dict[str, Any]) -> str:
        """Return the line. Data that JSON cannot express never loses it."""
        try:
            return str(super().jsonify_log_record(log_data))
        except (TypeError, ValueError, RecursionError):
            # Extra data from a library, such as a list that contains itself.
            return json.dumps({str(name): str(value) for name, value in log_data.items()})


def set_up() -> None:
    """Log as JSON from now on, also before Faust configures logging.

    Python's warnings and uncaught exceptions become log lines, too. May be called twice.
    """
    if sys.excepthook is _uncaught:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.getLogger().addHandler(handler)
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    sys.unraisablehook = _unraisable


def faust_logging() -> dict[str, Any]:
    """Return the value for Faust's setting ``logging_config``: ours replaces both formatters."""
    return {
        "merge": True,
        "formatters": {name: {"()": JsonLines} for name in ("default", "colored")},
    }


def _plain(value: object) -> object:
    # JSON has neither NaN nor infinity.
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        logger.critical("Uncaught exception", exc_info=(kind, error, trace))


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if not isinstance(args.exc_value, SystemExit):
        line = LogLine("Uncaught exception in a thread", thread=args.thread and args.thread.name)
        logger.critical(line, exc_info=args.exc_value)


def _unraisable(args: UnraisableHookArgs) -> None:
    line = LogLine("Exception ignored", what=args.err_msg or "in", object=repr(args.object))
    logger.error(line, exc_info=args.exc_value)
