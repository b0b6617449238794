"""The shipped commands, as a user types them: ``faust -A app fallback-list`` and the others."""

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
from typing import Any

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 90.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended, and all it said."""

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


class Relay:
    """A folder to type commands in, with settings of its own."""

    def __init__(self, folder: Path, **settings: object) -> None:
        """Settings by their names in lower case; the database is a file in the folder."""
        self.folder = folder
        self.database = folder / "relay.db"
        given = {
            # Nothing listens there: commands that need no Kafka must not miss it.
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
            "faust",
            "-A",
            "app",
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
        """Run a command to its end; the status must be one of those."""
        process = await self.start(*arguments)
        try:
            async with asyncio.timeout(LIMIT_SECONDS):
                out, err = await process.communicate(stdin)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode is not None
        ended = Ended(process.returncode, out.decode(), err.decode())
        assert ended.status in statuses, ended
        return ended

    async def refused(self, *arguments: str, stdin: bytes = b"") -> str:
        """The one line with which a command refuses its arguments (status 2)."""
        return (await self(*arguments, stdin=stdin, statuses=(2,))).only_line


@dataclass(frozen=True, slots=True)
class Question:
    """A command that asks: its words, and the terminal to answer on."""

    process: asyncio.subprocess.Process
    terminal: int
    words: bytes


@asynccontextmanager
async def asked(relay: Relay, *arguments: str) -> AsyncIterator[Question]:
    """A command on a terminal, standing at its question."""
    leader, follower = pty.openpty()
    process = await relay.start(*arguments, stdin=follower)
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
