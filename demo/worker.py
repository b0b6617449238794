"""The real worker, ``faust -A app worker -l info``, as a child process with its log in a file."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections import Counter, deque
from collections.abc import Mapping
from pathlib import Path

from demo import die_with_parent
from demo.command_line import CannotRun

SHOWN_WARNINGS = 2
TAIL_LINES = 15
_KEPT_WARNINGS = 50
_COMMAND = ("-m", "faust", "-A", "app", "worker", "-l", "info")
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# Faust: [2025-12-19 10:30:00,123] [4711] [WARNING] text
_WARNING = re.compile(
    r"^\[\d{4}-\d\d-\d\d (\d\d:\d\d:\d\d)[^\]]*\] \[\d+\] \[(?:WARNING|ERROR|CRITICAL)\] (.*)$"
)
# A log line is a phrase and then key=value pairs; where a record is matters less than its id.
_PAIR = re.compile(r"\s\w+=")
_POSITION = re.compile(r"\s(?:topic|partition|offset)=\S+")
_EVENT_ID = re.compile(r"(event_id=[0-9a-f]{8})[-0-9a-f]{28}")


async def check_consumers(environment: Mapping[str, str], folder: Path) -> None:
    """Check that a worker with this environment finds its consumers; starts none.

    Raises:
        CannotRun: It does not; the message is the worker's own line.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from app import app"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        cwd=folder,
        env=environment,
    )
    _, errors = await process.communicate()
    if process.returncode:
        raise CannotRun(errors.decode(errors="replace").strip().rpartition("\n")[2])


class WorkerProcess:
    """Starts the worker, and makes sure that it ends."""

    def __init__(self, log_path: Path, environment: Mapping[str, str]) -> None:
        self.log_path = log_path
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None

    @property
    def exit_code(self) -> int | None:
        """Its exit status, negative for a signal; ``None`` while it runs or before."""
        return None if self._process is None else self._process.returncode

    async def start(self) -> None:
        """Start it, in the folder of its log."""
        with self.log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, die_with_parent.__file__, str(os.getpid())),
                *(sys.executable, *_COMMAND),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.log_path.parent,
                env=self._environment,
                # Ctrl-C reaches the whole group; the worker is stopped after the shop.
                start_new_session=True,
            )

    def kill(self) -> None:
        """End it at once. May be called at any time, also twice."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def stop(self, grace_seconds: float = 0.0) -> None:
        """Send SIGTERM and wait; after this time it is killed. May be called twice."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            killing = asyncio.get_running_loop().call_later(grace_seconds, self.kill)
            await self._process.wait()
            killing.cancel()


class WorkerLog:
    """Follows a log file that may not be there yet.

    Attributes:
        tail: The last lines.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0
        self._rest = b""
        self._warnings: dict[str, str] = {}
        self._times: Counter[str] = Counter()
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)

    @property
    def warnings(self) -> list[str]:
        """The last warnings and errors, one of each kind, the latest at the end."""
        return list(self._warnings.values())[-SHOWN_WARNINGS:]

    def read_on(self) -> None:
        """Take in what has been written since the last time."""
        if not self._path.exists():
            return
        with self._path.open("rb") as log:
            log.seek(self._position)
            new = log.read()
        self._position += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        for raw in lines:
            line = _COLOUR.sub("", raw.decode("utf-8", "replace")).rstrip()
            if line:
                self.tail.append(line)
            if found := _WARNING.match(line):
                self._warn(*found.groups())

    def _warn(self, time: str, text: str) -> None:
        # Many warnings of one kind must not hide the others.
        kind = _PAIR.split(text, maxsplit=1)[0]
        self._times[kind] += 1
        often = f"{self._times[kind]:,} times " if self._times[kind] > 1 else ""
        self._warnings.pop(kind, None)
        text = _EVENT_ID.sub(r"\1", _POSITION.sub("", text))
        self._warnings[kind] = f"{time} {often}{text}"
        if len(self._warnings) > _KEPT_WARNINGS:
            del self._warnings[next(iter(self._warnings))]
