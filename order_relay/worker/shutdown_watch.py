"""Ends a process whose shutdown takes too long, such as for a dead broker or a blocked thread."""

from __future__ import annotations

import atexit
import logging
import os
import threading

from order_relay.logs.log_line import LogLine
from order_relay.logs.standard_streams import drain_streams

logger = logging.getLogger(__name__)

# How long threads may run after the shutdown.
THREADS_SECONDS = 3.0


class ShutdownWatch:
    """A deadline for the shutdown. Ending the process is safe: uncommitted records come again."""

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None

    def allow(self, seconds: float) -> None:
        """End the process in ``seconds``; replaces an earlier deadline."""
        self.cancel()
        self._timer = threading.Timer(seconds, _end_process, (seconds,))
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        """Remove the deadline."""
        if self._timer is not None:
            self._timer.cancel()


def _end_process(after_seconds: float) -> None:
    logger.critical("Shutdown took over %.0f s: ending the process", after_seconds)
    drain_streams()
    os._exit(1)


_exit_status: int | None = None


def exit_soon(status: int) -> None:
    """End the process with this status, even if a consumer has left threads or tasks running.

    Python would wait for blocked threads, and close remaining tasks, which takes for ever if one
    of them catches all exceptions. Call this after the shutdown, when nothing is left to save.
    """
    global _exit_status  # noqa: PLW0603 - a process ends once
    _exit_status = status
    timer = threading.Timer(THREADS_SECONDS, _exit_despite_threads, (status,))
    timer.daemon = True
    timer.start()


@atexit.register
def _exit_before_cleanup() -> None:
    # Registered before consumers are imported, so that their exit handlers have run by now.
    if _exit_status is not None:
        logging.shutdown()
        drain_streams()
        os._exit(_exit_status)


def _exit_despite_threads(status: int) -> None:
    alive = [one.name for one in threading.enumerate() if one.is_alive() and not one.daemon]
    logger.warning(
        LogLine(
            "Process ends beside threads that do not return",
            threads=",".join(name for name in alive if name != threading.main_thread().name),
        )
    )
    drain_streams()
    os._exit(status)
