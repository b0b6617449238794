"""What the commands of the demo share: options, one-line errors, and Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import errno
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from order_relay.errors import PermanentError, RelayError

HOST = "127.0.0.1"
LOGGER_PORT = 3000
WEB_PORT = 6066
LIVE_RATE = 20.0
COUNTED_RATE = 100.0
GIVE_UP_AFTER_SECONDS = 120.0
SEED = 1
ORDER_LOGGING = "order_logging"
"""The consumer that the shop's orders are for. Other consumers may read them, too."""


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


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage is there for ``--help``."""

    def __init__(self, *, prog: str, description: str, name: str = "quickstart") -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)
        self._name = name

    def error(self, message: str) -> NoReturn:
        """End the process with status 2."""
        self.exit(2, f"{self._name}: {message.removeprefix('argument ')}\n")


def whole(low: int, high: int) -> Callable[[str], int]:
    """Return a type for argparse: a whole number within these bounds."""

    def read(text: str) -> int:
        # int() also takes underscores, signs and other scripts' digits; a typo should not pass.
        if not (text.isascii() and text.isdigit() and len(text) <= 19 and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(
                f"must be a whole number from {low:,} to {high:,}, not {text[:40]!r}"
            )
        return int(text)

    return read


def number(low: float, high: float) -> Callable[[str], float]:
    """Return a type for argparse: a number within these bounds."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:  # not-a-number fails this as well
            raise argparse.ArgumentTypeError(
                f"must be a number from {low:g} to {high:g}, not {text[:40]!r}"
            )
        return value

    return read


PORT = whole(1, 65_535)
WHOLE_SEED = whole(0, 2**31 - 1)
RATE = number(0.1, 1000)


@dataclass(frozen=True)
class Options:
    """How the demo is to run.

    Attributes:
        orders: Orders to pay before it ends; ``None`` goes on until Ctrl-C.
        rate: Payments a second.
        seed: The same seed gives the same orders and the same failures.
        give_up_after: Longest wait without any progress, in seconds.
        logger_port: Port of the sample logger.
        web_port: Port of the worker's web server.
        consumers: Names of the consumers that the worker runs.
        consumer_folders: Where their files are besides ``agents/``, separated by commas.
    """

    orders: int | None = None
    rate: float = LIVE_RATE
    seed: int = SEED
    give_up_after: float = GIVE_UP_AFTER_SECONDS
    logger_port: int = LOGGER_PORT
    web_port: int = WEB_PORT
    consumers: Sequence[str] = (ORDER_LOGGING,)
    consumer_folders: str = ""


def parse_options(arguments: Sequence[str], environment: Mapping[str, str]) -> Options:
    """Read the options; ends the process with status 2 and one line when one is wrong."""
    parser = OneLineParser(
        prog="python -m demo",
        description="Run the order relay with an embedded Kafka cluster, a sample order shop and "
        "a sample external logger, and watch it live. Nothing is kept afterwards. LOGGER_PORT and "
        "WEB_PORT choose other ports, CONSUMERS further consumers.",
    )

    def add(name: str, kind: Callable[[str], float], metavar: str, text: str) -> None:
        parser.add_argument(name, type=kind, metavar=metavar, help=text)

    # The embedded cluster keeps its records in memory. More than this would not fit.
    add("--orders", whole(1, 1_000_000), "N", "pay N orders, wait until each is accounted for, "
        "print the ledger; status 0 only if it closes (default: go on until Ctrl-C)")  # fmt: skip
    rates = f"(default {LIVE_RATE:g}; {COUNTED_RATE:g} with --orders)"
    add("--rate", RATE, "R", f"payments a second {rates}")
    add("--seed", WHOLE_SEED, "S", f"another seed gives other orders and failures (default {SEED})")
    longest = f"longest wait without any progress (default {GIVE_UP_AFTER_SECONDS:g})"
    add("--give-up-after", number(1, 86_400), "SECONDS", f"with --orders: {longest}")
    given = {
        name: one for name, one in vars(parser.parse_args(arguments)).items() if one is not None
    }
    if "orders" in given:
        given.setdefault("rate", COUNTED_RATE)
    for variable in ("LOGGER_PORT", "WEB_PORT"):
        if text := environment.get(variable, "").strip():
            try:
                given[variable.lower()] = PORT(text)
            except argparse.ArgumentTypeError as error:
                parser.error(f"{variable} {error}")
    text = environment.get("CONSUMERS") or ORDER_LOGGING
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    folders = environment.get("CONSUMER_FOLDERS", "")
    options = Options(**given, consumers=names, consumer_folders=folders)
    if options.logger_port == options.web_port:
        parser.error(
            f"the sample logger and the worker cannot both use port {options.web_port}: "
            "choose another with LOGGER_PORT or WEB_PORT"
        )
    if ORDER_LOGGING not in names:
        parser.error(
            f"CONSUMERS must have {ORDER_LOGGING} among its names, which the ledger of orders is "
            f"about, not {text[:80]!r}"
        )
    return options
