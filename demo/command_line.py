"""What the commands of the demo share: options, one-line errors, and Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, NoReturn

from order_relay.errors import InvalidSettings, PermanentError

LOGGER_PORT = 3000
WEB_PORT = 6066
LIVE_RATE = 20.0
COUNTED_RATE = 100.0
# The embedded cluster keeps its records in memory. More than this would not fit.
MAX_RATE = 1000.0
MAX_ORDERS = 1_000_000
GIVE_UP_AFTER_SECONDS = 120.0
SEED = 1
ORDER_LOGGING = "order_logging"
"""The consumer that the shop's orders are for. Other consumers may read them, too."""


class CannotRun(PermanentError):
    """The demo cannot start or go on. The message is one line that says what to do."""


class Interruption:
    """Requests to stop: the first asks for a clean stop, the second for a quick one.

    Attributes:
        first: Set by the first request.
        second: Set by the second.
    """

    def __init__(self) -> None:
        """Handle Ctrl-C, SIGTERM and SIGHUP of the running loop."""
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._request)

    def _request(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


def serve(run: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> int:
    """Run a command until Ctrl-C or SIGTERM sets its event; returns the exit status."""

    async def listen_and_run() -> None:
        await run(Interruption().first)

    try:
        asyncio.run(listen_and_run())
    except (CannotRun, InvalidSettings) as error:
        sys.stderr.write(f"quickstart: {error}\n")
        return 1
    return 0


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage is there for ``--help``."""

    def __init__(self, *, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """End the process with status 2."""
        self.exit(2, f"quickstart: {message.removeprefix('argument ')}\n")


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
RATE = number(0.1, MAX_RATE)


class Options(argparse.Namespace):
    """How the demo is to run.

    Attributes:
        orders: Orders to pay before it ends; ``None`` goes on until Ctrl-C.
        rate: Payments a second.
        logger_port: Port of the sample logger.
        web_port: Port of the worker's web server.
        seed: The same seed gives the same orders and the same failures.
        give_up_after: Longest wait without any progress, in seconds.
        consumers: Names of the consumers that the worker runs.
        consumer_folders: Where their files are besides ``agents/``, separated by commas.
    """

    orders: int | None = None
    rate: float = LIVE_RATE
    logger_port: int = LOGGER_PORT
    web_port: int = WEB_PORT
    seed: int = SEED
    give_up_after: float = GIVE_UP_AFTER_SECONDS
    consumers: Sequence[str] = (ORDER_LOGGING,)
    consumer_folders: str = ""


def parse_options(arguments: Sequence[str], environment: Mapping[str, str]) -> Options:
    """Read the options; ends the process with status 2 and one line when one is wrong."""
    parser = OneLineParser(
        prog="python -m demo",
        description="Run the order relay with an embedded Kafka cluster, a sample order shop and "
        "a sample external logger, and watch it live. Nothing is kept afterwards.",
    )

    def add(name: str, kind: Callable[[str], float], metavar: str, text: str) -> None:
        parser.add_argument(name, type=kind, metavar=metavar, help=text, default=argparse.SUPPRESS)

    add("--orders", whole(1, MAX_ORDERS), "N", "pay N orders, wait until each is accounted for, "
        "print the ledger; status 0 only if it closes (default: go on until Ctrl-C)")  # fmt: skip
    rates = f"(default {LIVE_RATE:g}; {COUNTED_RATE:g} with --orders)"
    add("--rate", RATE, "R", f"payments a second {rates}")
    for variable, default, server in (
        ("LOGGER_PORT", LOGGER_PORT, "the sample logger"),
        ("WEB_PORT", WEB_PORT, "the worker's web server"),
    ):
        option = f"--{variable.lower().replace('_', '-')}"
        add(option, PORT, "PORT", f"port of {server} (default {variable}, else {default})")
    add("--seed", WHOLE_SEED, "S", f"another seed gives other orders and failures (default {SEED})")
    longest = f"longest wait without any progress (default {GIVE_UP_AFTER_SECONDS:g})"
    add("--give-up-after", number(1, 86_400), "SECONDS", f"with --orders: {longest}")

    options = Options()
    for variable in ("LOGGER_PORT", "WEB_PORT"):
        if text := environment.get(variable, "").strip():
            try:
                setattr(options, variable.lower(), PORT(text))
            except argparse.ArgumentTypeError as error:
                parser.error(f"{variable} {error}")
    parser.parse_args(arguments, namespace=options)
    if options.orders is not None and "rate" not in vars(options):
        options.rate = COUNTED_RATE
    if options.logger_port == options.web_port:
        parser.error(
            f"the sample logger and the worker cannot both use port {options.web_port}: "
            "choose another with --logger-port or --web-port"
        )
    text = environment.get("CONSUMERS") or ORDER_LOGGING
    names = (name.strip() for name in text.split(","))
    options.consumers = tuple(dict.fromkeys(name for name in names if name))
    if ORDER_LOGGING not in options.consumers:
        parser.error(
            f"CONSUMERS must have {ORDER_LOGGING} among its names, which the ledger of orders is "
            f"about, not {text[:80]!r}"
        )
    options.consumer_folders = environment.get("CONSUMER_FOLDERS", "")
    return options
