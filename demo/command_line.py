"""What the commands of the demo share: options, one-line errors, and Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import errno
import math
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from aiohttp import web

from order_relay.errors import PermanentError, RelayError

HOST = "127.0.0.1"
LOGGER_PORT = 3000
WEB_PORT = 6066
LIVE_RATE = 20.0
COUNTED_RATE = 100.0
GIVE_UP_AFTER_SECONDS = 120.0
SEED = 1
ORDER_LOGGING = "order_logging"  # the consumer that the ledger is about


class CannotRun(PermanentError):
    """The demo cannot start or go on. The message is one line that says what to do."""


def on_stop_signal(call: Callable[[], object]) -> None:
    """Call this at every Ctrl-C, SIGTERM and SIGHUP, in the running loop."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, call)


def run_until_stopped(work: Coroutine[Any, Any, None]) -> int:
    """Run a command until Ctrl-C or SIGTERM cancels it; returns the exit status."""

    async def run() -> None:
        task = asyncio.create_task(work)
        on_stop_signal(task.cancel)
        with suppress(asyncio.CancelledError):
            await task

    try:
        asyncio.run(run())
    except RelayError as error:
        sys.stderr.write(f"quickstart: {error}\n")
        return 1
    return 0


def check_port(port: int, server: str, variable: str, host: str = HOST) -> None:
    """Check that a server will be able to listen on its port.

    Raises:
        CannotRun: It will not. The message names the variable that chooses another port.
    """
    with socket.socket() as probe:
        # As servers do: closing connections of an earlier run do not block the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reasons = {errno.EADDRINUSE: "is in use", errno.EACCES: "is not allowed for this user"}
            reason = reasons.get(error.errno or 0, f"cannot be used ({error.strerror})")
            raise CannotRun(
                f"port {port} {reason}, needed for {server}: choose another with {variable}"
            ) from error


@asynccontextmanager
async def listening(
    application: web.Application, host: str, port: int, server: str, variable: str
) -> AsyncIterator[int]:
    """Serve an application; gives the port, a free one for 0. The end closes every connection.

    Raises:
        CannotRun: The port is in use or not allowed.
    """
    check_port(port, server, variable, host)
    # A request whose client has gone must not be counted as answered later.
    runner = web.AppRunner(
        application, access_log=None, handler_cancellation=True, shutdown_timeout=0.2
    )
    try:
        await runner.setup()
        await web.TCPSite(runner, host, port).start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage is there for ``--help``."""

    def __init__(self, *, prog: str, description: str, name: str = "quickstart") -> None:
        super().__init__(
            prog=prog,
            description=description,
            allow_abbrev=False,
        )
        self._name = name

    def error(self, message: str) -> NoReturn:
        """End the process with status 2."""
        self.exit(2, f"{self._name}: {message.removeprefix('argument ')}\n")


def number(low: float, high: float, kind: type[float] = float) -> Callable[[str], float]:
    """Return a type for argparse: a number within these bounds, a whole one for ``kind=int``."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        # Python's numbers may have underscores; a typo should not pass. Not-a-number fails, too.
        if "_" in text or not low <= value <= high:
            name = "whole number" if issubclass(kind, int) else "number"
            raise argparse.ArgumentTypeError(
                f"must be a {name} from {low:,} to {high:,}, not {text[:40]!r}"
            )
        return value

    return read


PORT = number(1, 65_535, int)
WHOLE_SEED = number(0, 2**31 - 1, int)
RATE = number(0.1, 1000)


@dataclass(frozen=True)
class Options:
    """How the demo is to run."""

    orders: int | None = None  # to pay before it ends; None goes on until Ctrl-C
    rate: float = LIVE_RATE  # payments a second
    seed: int = SEED  # the same seed gives the same orders and the same failures
    give_up_after: float = GIVE_UP_AFTER_SECONDS  # longest wait without any progress
    logger_port: int = LOGGER_PORT
    web_port: int = WEB_PORT
    consumers: Sequence[str] = (ORDER_LOGGING,)  # this one is always among them
    consumer_folders: str = ""  # with commas; where their files are besides agents/


def parse_options(arguments: Sequence[str], environment: Mapping[str, str]) -> Options:
    """Read the options; ends the process with status 2 and one line when one is wrong."""
    parser = OneLineParser(
        prog="python -m demo",
        description="Run the order relay with an embedded Kafka cluster, a sample order shop and "
        "a sample external logger, and watch it live. Nothing is kept afterwards. LOGGER_PORT and "
        "WEB_PORT choose other ports, CONSUMERS further consumers.",
    )
    parser.argument_default = argparse.SUPPRESS  # Options has the defaults

    add = parser.add_argument
    # The embedded cluster keeps its records in memory. More than this would not fit.
    add("--orders", type=number(1, 1_000_000, int), metavar="N", help="pay N orders, wait until "
        "each is accounted for, print the ledger; status 0 only if it closes (default: go on "
        "until Ctrl-C)")  # fmt: skip
    add("--rate", type=RATE, metavar="R",
        help=f"payments a second (default {LIVE_RATE:g}, {COUNTED_RATE:g} with "
        "--orders)")  # fmt: skip
    add("--seed", type=WHOLE_SEED, metavar="S",
        help=f"another seed gives other orders and failures (default {SEED})")  # fmt: skip
    add("--give-up-after", type=number(1, 86_400), metavar="SECONDS", help="with --orders: "
        f"longest wait without any progress (default {GIVE_UP_AFTER_SECONDS:g})")  # fmt: skip
    given = vars(parser.parse_args(arguments))
    if "orders" in given:
        given.setdefault("rate", COUNTED_RATE)
    for variable in ("LOGGER_PORT", "WEB_PORT"):
        if text := environment.get(variable, "").strip():
            try:
                given[variable.lower()] = PORT(text)
            except argparse.ArgumentTypeError as error:
                parser.error(f"{variable} {error}")
    names = (name.strip() for name in environment.get("CONSUMERS", "").split(","))
    consumers = dict.fromkeys((ORDER_LOGGING, *filter(None, names)))
    folders = environment.get("CONSUMER_FOLDERS", "").strip()
    return Options(**given, consumers=tuple(consumers), consumer_folders=folders)
