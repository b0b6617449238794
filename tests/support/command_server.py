"""A process that has imported the libraries, and runs each command in a fork of itself.

``command_server.py SOCKET`` listens there and prints a line when it does. A connection brings one
line of JSON (arguments, folder, environment, stdin) and gets two back: the command's process id,
then its status, stdout and stderr. It ends with its stdin.

Most of the time of a short command goes into importing Faust, SQLAlchemy and aiohttp. Nothing of
ours is imported here: a fork imports the application, reads its settings and parses its arguments
as a new interpreter does.
"""

import gc
import json
import os
import runpy
import select
import signal
import socket
import sys
from pathlib import Path
from threading import Thread
from typing import Any, NoReturn

import aiohttp.web  # noqa: F401 - this and the rest is what a command would import
import aiokafka.admin  # noqa: F401
import aiosqlite  # noqa: F401
import alembic.command  # noqa: F401
import asyncpg  # type: ignore[import-untyped]  # noqa: F401
import confluent_kafka.admin  # noqa: F401
import faust.app
import faust.assignor.partition_assignor
import faust.cli.faust
import faust.sensors.prometheus
import faust.tables.sets
import faust.topics
import faust.transport.drivers.aiokafka  # noqa: F401
import pydantic_settings  # noqa: F401
import pythonjsonlogger.json  # noqa: F401
import rich.progress
import rich.table  # noqa: F401
import sqlalchemy.dialects.postgresql
import sqlalchemy.dialects.sqlite
import sqlalchemy.ext.asyncio  # noqa: F401
import uvloop  # noqa: F401

Request = dict[str, Any]


def main() -> None:
    """Take connections until stdin ends."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(sys.argv[1])
    server.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # What is there stays: forks neither look through it nor copy its pages.
    gc.freeze()
    print("listening", flush=True)
    while True:
        readable, _, _ = select.select([server, sys.stdin], [], [])
        if sys.stdin in readable:
            return
        connection, _ = server.accept()
        if os.fork() == 0:
            server.close()
            attend(connection)
        connection.close()


def attend(connection: socket.socket) -> NoReturn:
    """Run the command of one connection and answer with what it said."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with connection.makefile("rb") as lines:
        request: Request = json.loads(lines.readline())
    pipes = [os.pipe() for _ in range(3)]
    pid = os.fork()
    if pid == 0:
        connection.close()
        become_command(request, pipes)
    (stdin, to_stdin), (from_stdout, stdout), (from_stderr, stderr) = pipes
    for theirs in (stdin, stdout, stderr):
        os.close(theirs)
    connection.sendall(b"%d\n" % pid)
    said: dict[str, bytes] = {}
    threads = [
        Thread(target=feed, args=(to_stdin, request["stdin"].encode("latin-1"))),
        Thread(target=lambda: said.update(out=read(from_stdout))),
        Thread(target=lambda: said.update(err=read(from_stderr))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    answer = {"status": status, **{name: text.decode("latin-1") for name, text in said.items()}}
    connection.sendall(json.dumps(answer).encode() + b"\n")
    os._exit(0)


def become_command(request: Request, pipes: list[tuple[int, int]]) -> NoReturn:
    """Do what ``python -m order_relay ARGUMENTS`` would do in that folder and environment."""
    (stdin, to_stdin), (from_stdout, stdout), (from_stderr, stderr) = pipes
    for number, descriptor in enumerate((stdin, stdout, stderr)):
        os.dup2(descriptor, number)
    for descriptor in (stdin, to_stdin, from_stdout, stdout, from_stderr, stderr):
        os.close(descriptor)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[0] = str(Path.cwd())
    # The list itself: Faust keeps a reference to it from its import on.
    sys.argv[1:] = request["arguments"]
    runpy.run_module("order_relay.__main__", run_name="__main__", alter_sys=True)
    sys.exit()


def feed(descriptor: int, content: bytes) -> None:
    """Write stdin; a command may have ended before it read all of it."""
    try:
        with os.fdopen(descriptor, "wb") as stdin:
            stdin.write(content)
    except BrokenPipeError:
        pass


def read(descriptor: int) -> bytes:
    """Everything up to the end."""
    with os.fdopen(descriptor, "rb") as stream:
        return stream.read()


if __name__ == "__main__":
    main()
