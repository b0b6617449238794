"""Faust's worker, as ours says what starts, logs, and answers signals."""

from __future__ import annotations

import io
import logging
import signal
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn, cast

import faust
import mode
from faust.cli.worker import worker as worker_command
from mode.utils.logging import cry

from order_relay.logs import json_format
from order_relay.logs.log_line import LogLine
from order_relay.logs.standard_streams import NonBlockingStream
from order_relay.settings import Settings
from order_relay.settings.consumers import ConfiguredConsumer
from order_relay.version import VERSION
from order_relay.worker.shutdown_watch import leave_all_behind

logger = logging.getLogger(__name__)


class Worker(faust.Worker):
    """A worker whose every line is in the log, and that no signal and no full pipe stops dead."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.quiet = True
        self.spinner = None

    def on_setup_root_logger(self, root: logging.Logger, level: int) -> None:
        """Let the log's handlers wait for no reader."""
        super().on_setup_root_logger(root, level)
        for handler in root.handlers:
            if type(handler) is not logging.FileHandler and isinstance(
                handler, logging.StreamHandler
            ):
                on_left_out = cast(Any, self.app).metrics.log_line_left_out
                handler.setStream(NonBlockingStream(handler.stream, on_left_out=on_left_out))

    def install_signal_handlers(self) -> None:
        """Stop by SIGHUP too, unless ``nohup`` has it ignored."""
        super().install_signal_handlers()
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            self.loop.add_signal_handler(signal.SIGHUP, self._on_sighup)

    def _on_sighup(self) -> None:
        self._flag_as_shutdown_by_signal()
        self._schedule_shutdown(signal.SIGHUP)

    def _on_sigusr2(self) -> None:
        self._on_sigusr1()  # Faust would open a debugger, and deliver nothing until its end

    def execute_from_commandline(self) -> NoReturn:
        """Run the worker; nothing that a handler has left behind keeps it from ending.

        Raises:
            SystemExit: Always; with 0 only if a signal asked it to stop.
        """
        try:
            super().execute_from_commandline()
        except SystemExit as end:
            if not end.code and self._signal_stop_time is None:
                # sys.exit() in a task of a handler's own, or something has cancelled all tasks.
                logger.error(LogLine("Worker ended though no signal asked it to"))
                end.code = 1
            leave_all_behind(end.code if isinstance(end.code, int) else int(bool(end.code)))
            raise

    async def _cry(self) -> None:
        # For people who look for what hangs.
        stacks = io.StringIO()
        cry(file=stacks)
        logger.warning(LogLine("Stacks of all threads", stacks=stacks.getvalue()))


class JsonWorker(Worker):
    """A worker whose log is JSON, also what ends its start."""

    def on_setup_root_logger(self, root: logging.Logger, level: int) -> None:
        """Say what starts, in place of Faust's banner."""
        super().on_setup_root_logger(root, level)
        logger.info(_starting(cast(faust.App, self.app)))

    def execute_from_commandline(self) -> NoReturn:
        """Run the worker; what ends its start in one line, ends it in a line of the log."""
        try:
            super().execute_from_commandline()
        except SystemExit as end:
            if isinstance(end.code, str):
                logger.critical(end.code)
                raise SystemExit(1) from None
            raise


def use_worker(app: faust.App, settings: Settings) -> None:
    """Let ``faust worker`` run this app in this worker, and say in a line what it is."""
    if settings.log_format == "json":
        app.conf.Worker = cast(Any, JsonWorker)
        app.conf.logging_config = json_format.faust_logging()
        banner = _no_banner
    else:
        app.conf.Worker = cast(Any, Worker)
        banner = _print_banner
    worker_command.on_worker_created = banner  # type: ignore[method-assign, assignment]


def _no_banner(command: worker_command, worker: mode.Worker) -> None:
    """Print nothing: the log has it."""


def _print_banner(command: worker_command, worker: mode.Worker) -> None:
    with suppress(OSError):  # a full disk
        command.say(str(_starting(cast(faust.App, command.app))))  # whatever the log's level is


def _starting(app: faust.App) -> LogLine:
    consumers: Sequence[ConfiguredConsumer] = cast(Any, app).consumers
    return LogLine(
        "Worker starting",
        version=VERSION,
        # Of several consumers all that follows is in the same order.
        consumers=",".join(one.name for one in consumers),
        topic=",".join(one.settings.order_paid_topic for one in consumers),
        group=",".join(one.settings.consumer_group_id for one in consumers),
        target=",".join(one.target for one in consumers),
        dead_letters=",".join(one.settings.dlq_topic for one in consumers),
        web=f"http://{app.conf.web_bind}:{app.conf.web_port}",
        faust=faust.__version__,
    )
