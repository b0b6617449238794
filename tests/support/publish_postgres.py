"""A PostgreSQL server of the tests' own: a free port, a temporary folder, gone at the end."""

from __future__ import annotations

import asyncio
import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import asyncpg  # type: ignore[import-untyped] # ships no types
import trustme

T = TypeVar("T")

USER = "relay"
CERTIFIED = "certified"
WITH_PASSWORD = "with_password"
HBA = f"""\
hostssl all {CERTIFIED} all cert
hostssl all {WITH_PASSWORD} all scram-sha-256
hostssl all {USER} all trust
"""
START_SECONDS = 60.0
_PR_SET_PDEATHSIG = 1


def find_binary(name: str) -> Path | None:
    """Return a server program: on the path, or where Debian keeps it."""
    if found := shutil.which(name):
        return Path(found).resolve()
    candidates = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return candidates[-1] if candidates else None


def unavailable_reason() -> str | None:
    """Return why there can be no server here, or None."""
    for name in ("initdb", "postgres"):
        if find_binary(name) is None:
            return f"PostgreSQL's {name} is not installed (Debian: apt-get install postgresql)"
    if os.geteuid() == 0 and _unprivileged() is None:
        return "PostgreSQL does not run as root, and there is no user postgres or nobody"
    return None


class PostgresServer:
    """A running server from construction to ``close``."""

    def __init__(self, *, durable: bool = False, authority: trustme.CA | None = None) -> None:
        """Start; without ``durable`` commits do not wait for the disk.

        With an authority the server takes connections over TLS only, by a certificate that the
        authority has signed; the user CERTIFIED needs one too.
        """
        initdb, postgres = find_binary("initdb"), find_binary("postgres")
        assert initdb is not None
        assert postgres is not None
        self._folder = Path(tempfile.mkdtemp(prefix="relay-postgres-"))
        user = _unprivileged() if os.geteuid() == 0 else None
        if user is not None:
            shutil.chown(self._folder, user)
        data = self._folder / "data"
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        subprocess.run(
            [initdb, "-D", data, "-A", "trust", "-U", USER, "-E", "UTF8", "--locale=C", "-N"],
            check=True,
            capture_output=True,
            cwd=self._folder,
            user=user,
        )
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "fsync": "on" if durable else "off",
            "max_connections": "200",
        }
        if authority is not None:
            options |= self._secure(authority, user)
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [postgres, "-D", data, *(f"--{name}={value}" for name, value in options.items())],
                cwd=self._folder,
                user=user,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent  # noqa: PLW1509 - one system call, no locks
                if sys.platform == "linux"
                else None,
            )
        self._wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _secure(self, authority: trustme.CA, user: str | None) -> dict[str, str]:
        """Write the files that TLS needs; return the options."""
        issued = authority.issue_cert("127.0.0.1")
        files = {
            "ssl_cert_file": b"".join(blob.bytes() for blob in issued.cert_chain_pems),
            "ssl_key_file": issued.private_key_pem.bytes(),
            "ssl_ca_file": authority.cert_pem.bytes(),
            "hba_file": HBA.encode(),
        }
        for name, content in files.items():
            path = self._folder / name
            path.write_bytes(content)
            path.chmod(0o600)
            if user is not None:
                shutil.chown(path, user)
        return {"ssl": "on", **{name: str(self._folder / name) for name in files}}

    def url(self, database: str) -> str:
        """Return the DATABASE_URL of a database."""
        return f"postgresql+asyncpg://{USER}@127.0.0.1:{self.port}/{database}"

    def create_database(self, template: str = "template1") -> str:
        """Make a database, a copy of another; return its name. Blocks, also inside a loop."""
        name = f"relay_{uuid.uuid4().hex[:12]}"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return name

    def drop_database(self, name: str) -> None:
        """Take a database away, whoever uses it. Blocks, also inside a loop."""
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def execute(self, sql: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run a statement, return its rows. Blocks, also inside a loop."""
        return blocking(self._execute(sql, database))

    async def _execute(self, sql: str, database: str) -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(
            host="127.0.0.1", port=self.port, user=USER, database=database
        )
        try:
            return [tuple(row) for row in await connection.fetch(sql)]
        finally:
            await connection.close()

    def close(self) -> None:
        """End the server. May be called twice."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
            self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.execute("SELECT 1")
                return
            except (OSError, asyncpg.CannotConnectNowError):
                assert self._process is not None
                if self._process.poll() is not None or time.monotonic() > deadline:
                    log = (self._folder / "log").read_text(errors="replace")
                    self.close()
                    raise RuntimeError(f"PostgreSQL does not start: {log[-2000:]}") from None
            time.sleep(0.05)


def blocking(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, from anywhere: in a loop and a thread of its own."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def _unprivileged() -> str | None:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)
