"""``LOG_FORMAT=json``: everything that the process logs, as one JSON object a line.

Each object has ``timestamp``, ``level``, ``logger``, ``process``, ``message``, the line's own
fields, and ``exception`` if there is one.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pythonjsonlogger.json import JsonFormatter

from order_relay.logs.log_line import LogLine

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

logger = logging.getLogger(__name__)

# The two formatters of Faust's logging configuration. Ours replaces both.
FORMATTERS = ("default", "colored")


class JsonLines(JsonFormatter):
    """Formats all log records as JSON: those of the relay and those of libraries."""

    def add_fields(
        self,
        log_data: dict[str, Any],
        record: logging.LogRecord,
        message_dict: dict[str, Any],
    ) -> None:
        """Fill in the fields of a line."""
        line = record.msg if isinstance(record.msg, LogLine) else None
        common = {
            "timestamp": _timestamp(record.created),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": line.message if line is not None else record.getMessage(),
        }
        # Twice: first to fix the order of the fields, then so that a library's extra data of the
        # same name cannot replace them.
        log_data.update(common)
        super().add_fields(log_data, record, message_dict)
        if (exception := log_data.pop("exc_info", None)) is not None:
            log_data["exception"] = exception
        if line is not None:
            log_data.update({name: _plain(value) for name, value in line.fields.items()})
        log_data.update(common)

    def jsonify_log_record(self, log_data: dict[str, Any]) -> str:
        """Return the line. Data that JSON cannot express never loses it."""
        try:
            return str(super().jsonify_log_record(log_data))
        except (TypeError, ValueError, RecursionError):
            # Extra data from a library, such as a list that contains itself.
            return json.dumps({str(name): str(value) for name, value in log_data.items()})


def set_up() -> None:
    """Log as JSON from now on, also before Faust configures logging.

    Python's warnings and uncaught exceptions become log lines, too.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(formatter())
    logging.getLogger().addHandler(handler)
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    sys.unraisablehook = _unraisable


def formatter() -> logging.Formatter:
    """Return a formatter for any ``logging`` handler."""
    return JsonLines()


def faust_logging() -> dict[str, Any]:
    """Return the value for Faust's setting ``logging_config``."""
    return {"merge": True, "formatters": {name: {"()": formatter} for name in FORMATTERS}}


def _timestamp(created: float) -> str:
    moment = datetime.fromtimestamp(created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _plain(value: object) -> object:
    # JSON has neither NaN nor infinity.
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logger.critical("Uncaught exception", exc_info=(kind, error, trace))


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        name = args.thread.name if args.thread is not None else None
        logger.critical(
            LogLine("Uncaught exception in a thread", thread=name),
            exc_info=(args.exc_type, args.exc_value, args.exc_traceback),
        )


def _unraisable(unraisable: UnraisableHookArgs) -> None:
    error = unraisable.exc_value
    logger.error(
        LogLine(
            "Exception ignored", what=unraisable.err_msg or "in", object=repr(unraisable.object)
        ),
        exc_info=(type(error), error, error.__traceback__) if error is not None else None,
    )
