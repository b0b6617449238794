"""The real worker, ``faust -A app worker -l info``, as a child process with its log in a file."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from demo import die_with_parent
from demo.errors import CannotRun
from demo.sample_logger import HOST, port_trouble

_WHICH_CONSUMERS = """
import json
from app import app
for one in app.consumers:
    print(json.dumps([one.name, one.settings.order_paid_topic, one.settings.dlq_topic]))
"""
COMMAND = ("-m", "faust", "-A", "app", "worker", "-l", "info")


class WorkerProcess:
    """Starts the worker, waits for its end, and makes sure that it ends."""

    def __init__(
        self, log_path: Path, environment: Mapping[str, str], *, grace_seconds: float
    ) -> None:
        """Prepare the worker.

        Args:
            log_path: File for all it prints.
            environment: Its whole environment.
            grace_seconds: How long it may take to end after SIGTERM.
        """
        self.log_path = log_path
        self._environment = environment
        self._grace_seconds = grace_seconds
        self._process: asyncio.subprocess.Process | None = None

    @property
    def exit_code(self) -> int | None:
        """Its exit status, negative for a signal; ``None`` while it runs or before."""
        return None if self._process is None else self._process.returncode

    async def start(self) -> None:
        """Start it, in the folder of its log."""
        with self.log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                die_with_parent.__file__,
                str(os.getpid()),
                sys.executable,
                *COMMAND,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.log_path.parent,
                env=self._environment,
                # Ctrl-C reaches the whole group; the worker is to be told in its turn.
                start_new_session=True,
            )

    async def wait(self) -> int:
        """Wait until it has ended; returns its exit status."""
        if self._process is None:
            raise RuntimeError("the worker is not started")
        return await self._process.wait()

    async def stop(self) -> bool:
        """Send SIGTERM and wait; SIGKILL when it takes too long. May be called twice.

        Returns:
            ``False`` when it had to be killed.
        """
        process = self._process
        if process is None or process.returncode is not None:
            return True
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), self._grace_seconds)
        except TimeoutError:
            await self.kill()
            return False
        return True

    async def kill(self) -> None:
        """End it at once. May be called twice."""
        process = self._process
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()


async def topics_of_consumers(
    environment: Mapping[str, str], folder: Path
) -> dict[str, tuple[str, str]]:
    """Return the topic and the dead-letter topic of each consumer; a worker says so, unstarted.

    Raises:
        CannotRun: It would not start; the message is its own.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _WHICH_CONSUMERS),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=folder,
        env=environment,
    )
    out, errors = await process.communicate()
    if process.returncode:
        raise CannotRun(errors.decode(errors="replace").strip().rpartition("\n")[2])
    rows = [json.loads(line) for line in out.splitlines()]
    return {name: (topic, dead_letter_topic) for name, topic, dead_letter_topic in rows}


def check_web_port(port: int) -> None:
    """See that the worker will be able to listen on its port.

    Raises:
        CannotRun: It will not.
    """
    with socket.socket() as probe:
        # As servers do: connections of an earlier run that wind down are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise CannotRun(
                f"{port_trouble(port, error)} for the worker's web server: "
                "choose another with --web-port or WEB_PORT"
            ) from error
