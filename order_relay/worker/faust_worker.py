"""Faust's worker with our own banner, logging, exit status and signals, and a limit to its end.

A shutdown can take too long, such as for a dead broker or a blocked thread.
"""

from __future__ import annotations

import atexit
import io
import logging
import os
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn, cast

import click
import faust
import mode
from faust.cli.base import cli as faust_cli
from faust.cli.worker import worker as worker_command
from mode.utils.logging import cry

from order_relay.logs import json_format
from order_relay.logs.log_line import LogLine
from order_relay.logs.standard_streams import NonBlockingStream, drain_streams
from order_relay.settings import Settings
from order_relay.settings.consumers import ConfiguredConsumer
from order_relay.version import VERSION

logger = logging.getLogger(__name__)

# How long threads may run after the shutdown.
THREADS_SECONDS = 3.0
# Commands that were Faust's until they became those of ``order-relay``.
MOVED = {
    **{f"dlq-{name}": f"dlq {name}" for name in ("list", "show", "redrive", "purge")},
    **{f"fallback-{name}": f"fallback {name}" for name in ("list", "stats", "requeue", "discard")},
    "order-status": "order",
    "publish": "publish",
}


class Worker(faust.Worker):
    """Faust's worker with our log lines, exit status, and handling of signals."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.quiet = True
        self.spinner = None

    @property
    def _logs_json(self) -> bool:
        return bool(cast(Any, self.app).settings.log_format == "json")

    def on_setup_root_logger(self, root: logging.Logger, level: int) -> None:
        """Make the log's handlers non-blocking, and log the start in JSON."""
        super().on_setup_root_logger(root, level)
        for handler in root.handlers:
            if type(handler) is not logging.FileHandler and isinstance(
                handler, logging.StreamHandler
            ):
                on_left_out = cast(Any, self.app).metrics.counters["log_lines_left_out"].inc
                handler.setStream(NonBlockingStream(handler.stream, on_left_out=on_left_out))
        if self._logs_json:
            logger.info(_starting(cast(faust.App, self.app)))

    def install_signal_handlers(self) -> None:
        """Stop at SIGHUP, too, unless ``nohup`` ignores it."""
        super().install_signal_handlers()
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            self.loop.add_signal_handler(signal.SIGHUP, self._on_sighup)

    def _on_sighup(self) -> None:
        self._flag_as_shutdown_by_signal()
        self._schedule_shutdown(signal.SIGHUP)

    def _on_sigusr2(self) -> None:
        self._on_sigusr1()  # Faust would open a debugger, which stops all deliveries

    def execute_from_commandline(self) -> NoReturn:
        """Run the worker, and end the process whatever a handler has left running.

        Raises:
            SystemExit: Always; with 0 only if a signal asked the worker to stop. With
                LOG_FORMAT=json a message is logged, and the code is 1.
        """
        try:
            super().execute_from_commandline()
        except SystemExit as end:
            if not end.code and self._signal_stop_time is None:
                # A handler's task called sys.exit(), or cancelled all tasks.
                logger.error(LogLine("Worker ended though no signal asked it to"))
                end.code = 1
            if isinstance(end.code, str) and self._logs_json:
                logger.critical(end.code)
                end.code = 1
            exit_soon(end.code if isinstance(end.code, int) else int(bool(end.code)))
            raise

    async def _cry(self) -> None:
        stacks = io.StringIO()
        cry(file=stacks)
        logger.warning(LogLine("Stacks of all threads", stacks=stacks.getvalue()))


class MovedCommand(click.Command):
    """Names the command of today on one line of stderr, and ends with status 2."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> NoReturn:
        """See ``click.Command``."""
        app = ctx.find_root().params.get("app") or "app"
        option = "" if app == "app" else f"-A {app} "
        now = f"order-relay {option}{MOVED[self.name or '']}"
        click.echo(f"faust -A {app} {self.name} is now: {now}", err=True)
        ctx.exit(2)


def use_worker(app: faust.App, settings: Settings) -> None:
    """Make ``faust worker`` run this app in our worker, with one line in place of its banner."""
    app.conf.Worker = cast(Any, Worker)
    for name in MOVED:
        faust_cli.add_command(MovedCommand(name, hidden=True))
    if settings.log_format == "json":
        app.conf.logging_config = json_format.faust_logging()
    worker_command.on_worker_created = _print_banner  # type: ignore[method-assign, assignment]


def _print_banner(command: worker_command, worker: mode.Worker) -> None:
    app = cast(Any, command.app)
    if app.settings.log_format != "json":  # in JSON it is logged
        with suppress(OSError):  # a full disk
            command.say(str(_starting(app)))  # whatever the log level is


def _starting(app: faust.App) -> LogLine:
    consumers: Sequence[ConfiguredConsumer] = cast(Any, app).consumers
    return LogLine(
        "Worker starting",
        version=VERSION,
        # With several consumers all lists have the same order.
        consumers=",".join(one.name for one in consumers),
        topic=",".join(one.settings.order_paid_topic for one in consumers),
        group=",".join(one.settings.consumer_group_id for one in consumers),
        target=",".join(one.target for one in consumers),
        dead_letters=",".join(one.settings.dlq_topic for one in consumers),
        web=f"http://{app.conf.web_bind}:{app.conf.web_port}",
        faust=faust.__version__,
    )


# --- the end of the process -----------------------------------------------------------------------


class ShutdownWatch:
    """A deadline for the shutdown. Ending the process is safe: uncommitted records come again."""

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None

    def allow(self, seconds: float) -> None:
        """End the process in ``seconds``; replaces an earlier deadline."""
        self.cancel()
        self._timer = threading.Timer(seconds, _end_process, (seconds,))
        self._timer.daemon = True
        with suppress(RuntimeError):  # at a limit of threads the worker stops without a deadline
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
    try:
        timer.start()
    except RuntimeError:  # at a limit of threads
        _exit_despite_threads(status)


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
