"""Ends a process whose end overruns: a client waits for a dead broker, a thread never returns."""

from __future__ import annotations

import atexit
import logging
import os
import threading

from order_relay.logs.log_line import LogLine
from order_relay.logs.standard_streams import drain_streams

logger = logging.getLogger(__name__)


# After the shutdown, for what still runs in threads.
THREADS_SECONDS = 3.0


class ShutdownWatch:
    """A deadline that may be set anew; safe at any moment: what is not committed comes again."""

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None

    def allow(self, seconds: float) -> None:
        """Give the shutdown so long from now on."""
        self.cancel()
        self._timer = threading.Timer(seconds, _end_process, (seconds,))
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        """Let the process go on."""
        if self._timer is not None:
            self._timer.cancel()


def _end_process(after_seconds: float) -> None:
    logger.critical("Shutdown took over %.0f s: ending the process", after_seconds)
    drain_streams()
    os._exit(1)


_status: int | None = None


def leave_all_behind(status: int) -> None:
    """End the process with this status soon, whatever a consumer has left in it.

    Python would wait for threads that hang, and close each task that is left: one that catches
    everything goes on for ever then. Everything that can be saved is: call it when the shutdown
    is over.
    """
    global _status  # noqa: PLW0603 - the process has one end
    _status = status
    timer = threading.Timer(THREADS_SECONDS, _end_beside_threads, (status,))
    timer.daemon = True
    timer.start()


@atexit.register
def _end_before_garbage() -> None:
    # Registered before consumers are imported: what they have registered has run.
    if _status is not None:
        logging.shutdown()
        drain_streams()
        os._exit(_status)


def _end_beside_threads(status: int) -> None:
    hanging = [one.name for one in threading.enumerate() if one.is_alive() and not one.daemon]
    logger.warning(
        LogLine(
            "Process ends beside threads that do not return",
            threads=",".join(name for name in hanging if name != threading.main_thread().name),
        )
    )
    drain_streams()
    os._exit(status)
