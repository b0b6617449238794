"""A process that has imported the libraries, and runs each command or worker in a fork of itself.

``fork_server.py SOCKET`` listens there and prints a line when it does. A connection brings one line
of JSON (module, arguments, folder, environment, and the files of its three streams) and gets two
back: the id of the process, and its status at the end. The server ends with its stdin.

Most of the time of a short command, and half of a worker's start, goes into importing Faust,
SQLAlchemy and aiohttp. Nothing of ours is imported here: a fork imports the application, reads its
settings and parses its arguments as a new interpreter does.
"""

import ctypes
import gc
import json
import os
import runpy
import select
import signal
import socket
import sys
from pathlib import Path
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
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main() -> None:
    """Take connections until stdin ends."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(sys.argv[1])
    server.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # The collector of a fork then neither scans these objects nor copies their pages.
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
    """Run what one connection asks for, in a session of its own."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    die_with_parent()
    with connection.makefile("rb") as lines:
        request: Request = json.loads(lines.readline())
    pid = os.fork()
    if pid == 0:
        connection.close()
        die_with_parent()
        os.setsid()
        for number, path in enumerate(request["streams"]):
            mode = os.O_WRONLY | os.O_CREAT | os.O_APPEND if number else os.O_RDONLY
            os.dup2(os.open(path, mode, 0o644), number)
        become(request)
    connection.sendall(b"%d\n" % pid)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    connection.sendall(b"%d\n" % status)
    os._exit(0)


def become(request: Request) -> NoReturn:
    """Do what ``python -m MODULE ARGUMENTS`` would do in that folder and environment."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[0] = str(Path.cwd())
    # The list itself: Faust keeps a reference to it from its import on.
    sys.argv[1:] = request["arguments"]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    sys.exit()


def die_with_parent() -> None:
    """Ask the kernel for a SIGKILL when the parent ends, as ``child.on_leash`` does."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
