"""Processes that are forks of one that has imported the libraries: see ``fork_server.py``."""

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from threading import Lock

ROOT = Path(__file__).parents[2]
POSSIBLE = sys.platform == "linux"
_STARTING = Lock()


class ForkedProcess:
    """A process like one of ``subprocess.Popen``, about a second of processor time cheaper.

    It has what ``WorkerProcess`` and ``Commands`` use of ``Popen``.
    """

    stdout = None

    def __init__(
        self, command: Sequence[str], cwd: Path, environment: Mapping[str, str], *streams: Path
    ) -> None:
        """Start ``python -m`` MODULE ARGUMENTS there, with files for stdin, stdout and stderr."""
        self.returncode: int | None = None
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(fork_server())
        request = {
            "module": f"{command[0]}.__main__", "arguments": [*command[1:]], "folder": str(cwd),
            "environment": dict(environment), "streams": [str(path) for path in streams],
        }  # fmt: skip
        self._connection.sendall(json.dumps(request).encode() + b"\n")
        self._lines = self._connection.makefile("rb")
        self.pid = int(self._lines.readline())
        self._ends = select.poll()  # select.select() takes no file descriptor above 1,023
        self._ends.register(self._connection, select.POLLIN)

    def fileno(self) -> int:
        """What is readable at its end, for an event loop."""
        return self._connection.fileno()

    def poll(self) -> int | None:
        """The exit status, negative for a signal; ``None`` while it runs."""
        if self.returncode is None and self._ends.poll(0):
            return self.wait()
        return self.returncode

    def wait(self) -> int:
        """Wait for its end."""
        if self.returncode is None:
            self.returncode = int(self._lines.readline())
            self._lines.close()
            self._connection.close()
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)


def fork_server() -> str:
    """The socket of this process's ``fork_server.py``; the first call starts it."""
    with _STARTING:
        return _started()


@cache
def _started() -> str:
    folder = tempfile.TemporaryDirectory(prefix="order-relay-forks-")
    path = Path(folder.name) / "socket"
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("fork_server.py")), str(path)],
        # A command's environment: Python sets up its streams by it.
        env={"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )

    def end() -> None:
        with process:
            process.kill()
        folder.cleanup()

    atexit.register(end)
    assert process.stdout is not None
    assert process.stdout.readline() == b"listening\n"
    return str(path)
