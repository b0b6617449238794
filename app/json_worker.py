"""Faust's worker where logs are JSON: what it would print beside the log is logged, or left out."""

from __future__ import annotations

import io
import logging
from typing import Any, NoReturn, cast

import faust
from faust.cli.worker import worker as worker_command
from mode.utils.logging import cry

from app.log_line import LogLine
from app.operations import json_log

logger = logging.getLogger(__name__)


class Worker(faust.Worker):
    """A worker whose every line is in the log."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.quiet = True
        self.spinner = None

    def on_setup_root_logger(self, root: logging.Logger, level: int) -> None:
        """Say what starts, in place of Faust's banner."""
        super().on_setup_root_logger(root, level)
        conf = self.app.conf
        logger.info(
            LogLine(
                "Worker starting",
                group=conf.id,
                web=f"http://{conf.web_bind}:{conf.web_port}",
                faust=faust.__version__,
            )
        )

    def execute_from_commandline(self) -> NoReturn:
        """Run the worker; what ends its start in one line, ends it in a line of the log."""
        try:
            super().execute_from_commandline()
        except SystemExit as end:
            if isinstance(end.code, str):
                logger.critical(end.code)
                raise SystemExit(1) from None
            raise

    async def _cry(self) -> None:
        # On SIGUSR1, for people who look for what hangs.
        stacks = io.StringIO()
        cry(file=stacks)
        logger.warning(LogLine("Stacks of all threads", stacks=stacks.getvalue()))


def use_json_worker(app: faust.App) -> None:
    """Let ``faust worker`` run this app in this worker, and print no banner."""
    app.conf.Worker = cast(Any, Worker)
    app.conf.logging_config = json_log.faust_logging()
    worker_command.on_worker_created = lambda self, worker: None  # type: ignore[method-assign]
