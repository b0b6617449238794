"""The shipped commands, as a user types them: ``order-relay fallback list`` and the others."""

import asyncio
import json
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.support import forks

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 90.0


@dataclass(frozen=True, slots=True)
class Ended:
    """A command's exit status and output."""

    status: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """Its stdout as lines of JSON; fails when it has anything else in it."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def only_line(self) -> str:
        """The one line that it wrote to stderr, and nothing to stdout."""
        (line,) = self.err.splitlines()
        assert not self.out
        assert "Traceback" not in line
        return line


class Commands:
    """A folder to run commands in, with its own settings."""

    def __init__(self, folder: Path, **settings: object) -> None:
        """Settings by their names in lower case; the database is a file in the folder."""
        self.folder = folder
        self.database = folder / "relay.db"
        given = {
            # Nothing listens there: some commands must work without Kafka.
            "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1",
            "DATABASE_URL": f"sqlite+aiosqlite:///{self.database}",
            **{name.upper(): value for name, value in settings.items()},
        }
        self.environment = {
            "PATH": os.environ.get("PATH", ""),
            "PYTHONPATH": str(ROOT),
            **{name: str(value) for name, value in given.items()},
        }

    @property
    def database_url(self) -> str:
        """Its database."""
        return self.environment["DATABASE_URL"]

    async def start(
        self,
        *arguments: str,
        stdin: int = asyncio.subprocess.PIPE,
        stdout: int = asyncio.subprocess.PIPE,
    ) -> asyncio.subprocess.Process:
        """Start a command."""
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "order_relay",
            *arguments,
            cwd=self.folder,
            env=self.environment,
            stdin=stdin,
            stdout=stdout,
            stderr=asyncio.subprocess.PIPE,
        )

    async def __call__(
        self, *arguments: str, stdin: bytes = b"", statuses: Collection[int] = (0,)
    ) -> Ended:
        """Run a command to its end; the status must be one of those.

        On Linux it is a fork of a process that has imported the libraries, which saves a second;
        ``in_new_interpreter`` and ``start`` do not fork. Each command's tests use one of those.
        """
        if not forks.POSSIBLE:
            return await self.in_new_interpreter(*arguments, stdin=stdin, statuses=statuses)
        await asyncio.to_thread(forks.fork_server)
        with TemporaryDirectory() as folder:
            given, out, err = streams = [Path(folder) / name for name in ("in", "out", "err")]
            given.write_bytes(stdin)
            process = forks.ForkedProcess(
                ("order_relay", *arguments), self.folder, self.environment, *streams
            )
            status = await _end_of(process)
            texts = (path.read_bytes().decode() for path in (out, err))
            return _expected(Ended(status, *texts), statuses)

    async def in_new_interpreter(
        self, *arguments: str, stdin: bytes = b"", statuses: Collection[int] = (0,)
    ) -> Ended:
        """Run a command to its end, in a new interpreter."""
        process = await self.start(*arguments)
        try:
            async with asyncio.timeout(LIMIT_SECONDS):
                out, err = await process.communicate(stdin)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode is not None
        return _expected(Ended(process.returncode, out.decode(), err.decode()), statuses)

    async def into_a_full_disk(self, *arguments: str, stdin: bytes = b"") -> list[str]:
        """The lines on stderr of a command whose stdout cannot be written; the status is 1."""
        full = os.open("/dev/full", os.O_WRONLY)
        try:
            process = await self.start(*arguments, stdout=full)
        finally:
            os.close(full)
        async with asyncio.timeout(LIMIT_SECONDS):
            _, err = await process.communicate(stdin)
        assert process.returncode == 1
        return err.decode().splitlines()

    async def refused(self, *arguments: str, stdin: bytes = b"") -> str:
        """The one line with which a command refuses its arguments (status 2)."""
        return (await self(*arguments, stdin=stdin, statuses=(2,))).only_line


def _expected(ended: Ended, statuses: Collection[int]) -> Ended:
    assert ended.status in statuses, ended
    return ended


async def _end_of(process: forks.ForkedProcess) -> int:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(process, ended.set)
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            await ended.wait()
    finally:
        loop.remove_reader(process)
        process.send_signal(signal.SIGKILL)
    return process.wait()


@dataclass(frozen=True, slots=True)
class Question:
    """A command's question, and the terminal to answer on."""

    process: asyncio.subprocess.Process
    terminal: int
    words: bytes


@asynccontextmanager
async def asked(commands: Commands, *arguments: str) -> AsyncIterator[Question]:
    """A command on a terminal, waiting for an answer."""
    leader, follower = pty.openpty()
    process = await commands.start(*arguments, stdin=follower)
    try:
        assert process.stderr is not None
        async with asyncio.timeout(LIMIT_SECONDS):
            yield Question(process, leader, await process.stderr.readuntil(b"[y/N]"))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        os.close(leader)
        os.close(follower)


async def end_by_signal(process: asyncio.subprocess.Process, number: signal.Signals) -> Ended:
    """Send a signal and wait for the end."""
    process.send_signal(number)
    async with asyncio.timeout(LIMIT_SECONDS):
        out, err = await process.communicate()
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


def nothing_in(folder: Path) -> bool:
    """Whether a folder is empty: a command that refuses its arguments leaves nothing behind."""
    return not any(folder.iterdir())
