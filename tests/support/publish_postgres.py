"""A PostgreSQL server for tests: a free port, a temporary folder, removed at the end."""

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
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

import asyncpg  # type: ignore[import-untyped] # ships no types
import trustme

from tests.support.kafka.ports import free_ports

T = TypeVar("T")

USER = "relay"
CERTIFIED = "certified"
WITH_PASSWORD = "with_password"
HBA = f"""\
hostssl all {CERTIFIED} all cert
hostssl all {WITH_PASSWORD} all scram-sha-256
hostssl all {USER} all trust
"""
STOP_SECONDS = 10.0
START_SECONDS = 60.0
# The schema of a database, as one text.
SCHEMA = """
SELECT string_agg(line, E'\\n' ORDER BY line) FROM (
    SELECT concat_ws(' ', table_name, column_name, data_type, column_default, is_nullable) AS line
      FROM information_schema.columns WHERE table_schema = 'public'
    UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
    UNION ALL SELECT concat_ws(' ', conrelid::regclass, conname, pg_get_constraintdef(oid))
      FROM pg_constraint WHERE connamespace = 'public'::regnamespace
    UNION ALL SELECT tgname FROM pg_trigger WHERE NOT tgisinternal
) AS lines
"""
_PR_SET_PDEATHSIG = 1


def find_binary(name: str) -> Path | None:
    """Return a server program: on the path, or where Debian keeps it."""
    if found := shutil.which(name):
        return Path(found).resolve()
    candidates = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return candidates[-1] if candidates else None


def _binary(name: str) -> Path:
    found = find_binary(name)
    assert found is not None
    return found


def unavailable_reason() -> str | None:
    """Return why there can be no server here, or None."""
    for name in ("initdb", "postgres"):
        if find_binary(name) is None:
            return f"PostgreSQL's {name} is not installed (Debian: apt-get install postgresql)"
    if os.geteuid() == 0 and _unprivileged() is None:
        return "PostgreSQL does not run as root, and there is no user postgres or nobody"
    return None


class _Server:
    """A server program from construction to ``close``: a free port, a folder, no rights."""

    def __init__(self) -> None:
        self.port = free_ports(1)[0]
        self._folder = Path(tempfile.mkdtemp(prefix="relay-postgres-"))
        self._user = _unprivileged() if os.geteuid() == 0 else None
        if self._user is not None:
            shutil.chown(self._folder, self._user)
        self._process: subprocess.Popen[bytes] | None = None

    def _start(self, *command: object, ready: Callable[[], bool]) -> None:
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                list(map(str, command)),
                cwd=self._folder,
                user=self._user,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent  # noqa: PLW1509 - one system call, no locks
                if sys.platform == "linux"
                else None,
            )
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                written = (self._folder / "log").read_text(errors="replace")
                self.close()
                raise RuntimeError(f"{command[0]} does not start: {written[-2000:]}")
            time.sleep(0.05)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the server. May be called twice."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:  # PgBouncer may wait for clients that do not leave
                self._process.kill()
                self._process.wait()
            self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)


class PostgresServer(_Server):
    """A running server."""

    def __init__(self, *, durable: bool = False, authority: trustme.CA | None = None) -> None:
        """Start; without ``durable`` commits do not wait for the disk.

        With an authority the server takes connections over TLS only, by a certificate that the
        authority has signed; the user CERTIFIED needs one too.
        """
        super().__init__()
        data = self._folder / "data"
        subprocess.run(
            [
                *(_binary("initdb"), "-D", data, "-A", "trust", "-U", USER),
                *("-E", "UTF8", "--locale=C", "-N"),
            ],
            check=True,
            capture_output=True,
            cwd=self._folder,
            user=self._user,
        )
        options = {
            "listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": "",
            "fsync": "on" if durable else "off", "max_connections": "200",
        }  # fmt: skip
        if authority is not None:
            options |= self._secure(authority)
        given = (f"--{name}={value}" for name, value in options.items())
        self._start(_binary("postgres"), "-D", data, *given, ready=self._answers)

    def _answers(self) -> bool:
        try:
            self.execute("SELECT 1")
        except (OSError, asyncpg.CannotConnectNowError):
            return False
        return True

    def _secure(self, authority: trustme.CA) -> dict[str, str]:
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
            if self._user is not None:
                shutil.chown(path, self._user)
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
        """Drop a database, even in use. Blocks, also inside a loop."""
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def empty_database(self, name: str, template: str, keep: str) -> bool:
        """Make a used copy equal to its template again, by emptying its tables.

        Much cheaper than another copy. Blocks, also inside a loop.

        Args:
            name: The copy. Its open connections are closed.
            template: What it is a copy of.
            keep: A table whose rows stay, to be compared with the template's.

        Returns:
            Whether it equals the template now; not if more than rows was changed.
        """
        return blocking(self._empty(name, template, keep))

    async def _empty(self, name: str, template: str, keep: str) -> bool:
        copy, original = await self._connect(name), await self._connect(template)
        try:
            await copy.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
            known = {row[0] for row in await original.fetch(tables)}
            for (table,) in await copy.fetch(tables):
                if table not in known:
                    await copy.execute(f'DROP TABLE "{table}" CASCADE')
                elif table != keep:
                    await copy.execute(f'TRUNCATE "{table}" RESTART IDENTITY CASCADE')
            for question in (SCHEMA, f'SELECT * FROM "{keep}"'):  # noqa: S608 - the test's own name
                if await copy.fetch(question) != await original.fetch(question):
                    return False
            return True
        finally:
            await copy.close()
            await original.close()

    def execute(self, sql: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run a statement, return its rows. Blocks, also inside a loop."""
        return blocking(self._execute(sql, database))

    async def _execute(self, sql: str, database: str) -> list[tuple[Any, ...]]:
        connection = await self._connect(database)
        try:
            return [tuple(row) for row in await connection.fetch(sql)]
        finally:
            await connection.close()

    async def _connect(self, database: str) -> Any:
        return await asyncpg.connect(host="127.0.0.1", port=self.port, user=USER, database=database)


class PgBouncer(_Server):
    """A pooler before a server.

    In transaction mode: two transactions of a client may have different connections to the server.
    """

    def __init__(self, server: PostgresServer) -> None:
        super().__init__()
        settings = self._folder / "pgbouncer.ini"
        settings.write_text(
            f"[databases]\n* = host=127.0.0.1 port={server.port} user={USER}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\n"
            "unix_socket_dir =\nauth_type = any\npool_mode = transaction\n"
        )
        self._start(_binary("pgbouncer"), "-q", settings, ready=self._listens)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def blocking(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, from anywhere: in its own loop and thread."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def _unprivileged() -> str | None:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    return None


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)
