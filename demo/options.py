"""What the user asks of the quickstart, from the command line and two environment variables."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

LOGGER_PORT = 3000
WEB_PORT = 6066
LIVE_RATE = 20.0
COUNTED_RATE = 100.0
# The embedded cluster keeps its records in memory; more than this is not what it is for.
MAX_RATE = 1000.0
MAX_ORDERS = 1_000_000
GIVE_UP_AFTER_SECONDS = 120.0
SEED = 1
ORDER_LOGGING = "order_logging"
"""The consumer that the shop's orders are for; others may read them, too."""


@dataclass(frozen=True, slots=True)
class Options:
    """How the quickstart is to run.

    Attributes:
        orders: Orders to pay before it ends; ``None`` goes on until Ctrl-C.
        rate: Payments a second.
        logger_port: Port of the sample logger.
        web_port: Port of the worker's web server.
        seed: The same seed gives the same orders and the same mishaps.
        give_up_after_seconds: Longest wait without any progress.
        consumers: Names of the consumers that the worker runs.
        consumer_folders: Where their files are besides ``agents/``, separated by commas.
    """

    orders: int | None
    rate: float
    logger_port: int
    web_port: int
    seed: int
    give_up_after_seconds: float
    consumers: tuple[str, ...] = (ORDER_LOGGING,)
    consumer_folders: str = ""


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage is there for ``--help``."""

    def error(self, message: str) -> NoReturn:
        """End the process with status 2."""
        self.exit(2, f"quickstart: {message.removeprefix('argument ')}\n")


def parse_options(arguments: Sequence[str], environment: Mapping[str, str]) -> Options:
    """Read the options; ends the process with status 2 and one line when one is wrong."""
    parser = _parser()
    given = parser.parse_args(arguments)
    logger_port = given.logger_port or _port_of(parser, environment, "LOGGER_PORT", LOGGER_PORT)
    web_port = given.web_port or _port_of(parser, environment, "WEB_PORT", WEB_PORT)
    if logger_port == web_port:
        parser.error(
            f"the sample logger and the worker cannot both use port {web_port}: "
            "choose another with --logger-port or --web-port"
        )
    return Options(
        orders=given.orders,
        rate=given.rate or (LIVE_RATE if given.orders is None else COUNTED_RATE),
        logger_port=logger_port,
        web_port=web_port,
        seed=given.seed,
        give_up_after_seconds=given.give_up_after,
        consumers=_consumers_of(parser, environment),
        consumer_folders=environment.get("CONSUMER_FOLDERS", ""),
    )


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m demo",
        description="Run the order relay with an embedded Kafka cluster, a sample order shop and "
        "a sample external logger, and watch it live. Nothing is kept afterwards.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--orders",
        type=_orders,
        metavar="N",
        help="pay N orders, wait until each is accounted for, print the ledger; status 0 only if "
        "it closes (default: go on until Ctrl-C)",
    )
    parser.add_argument(
        "--rate",
        type=rate,
        metavar="R",
        help=f"payments a second (default {LIVE_RATE:g}; {COUNTED_RATE:g} with --orders)",
    )
    parser.add_argument(
        "--logger-port",
        type=port,
        metavar="PORT",
        help=f"port of the sample logger (default LOGGER_PORT, else {LOGGER_PORT})",
    )
    parser.add_argument(
        "--web-port",
        type=port,
        metavar="PORT",
        help=f"port of the worker's web server (default WEB_PORT, else {WEB_PORT})",
    )
    parser.add_argument(
        "--seed",
        type=seed,
        default=SEED,
        metavar="S",
        help=f"another seed gives other orders and other mishaps (default {SEED})",
    )
    parser.add_argument(
        "--give-up-after",
        type=_seconds,
        default=GIVE_UP_AFTER_SECONDS,
        metavar="SECONDS",
        help="with --orders: longest wait without any progress "
        f"(default {GIVE_UP_AFTER_SECONDS:g})",
    )
    return parser


def _port_of(
    parser: argparse.ArgumentParser, environment: Mapping[str, str], name: str, default: int
) -> int:
    text = environment.get(name, "").strip()
    if not text:
        return default
    try:
        return port(text)
    except argparse.ArgumentTypeError as error:
        parser.error(f"{name} {error}")


def _consumers_of(
    parser: argparse.ArgumentParser, environment: Mapping[str, str]
) -> tuple[str, ...]:
    text = environment.get("CONSUMERS") or ORDER_LOGGING
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if ORDER_LOGGING not in names:
        parser.error(
            f"CONSUMERS must have {ORDER_LOGGING} among its names, which the ledger of orders is "
            f"about, not {text[:80]!r}"
        )
    return names


def _whole(text: str, low: int, high: int) -> int:
    # int() also takes underscores, signs and other scripts' digits; a typo should not pass.
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and low <= int(text) <= high):
        raise argparse.ArgumentTypeError(
            f"must be a whole number from {low:,} to {high:,}, not {text[:40]!r}"
        )
    return int(text)


def _orders(text: str) -> int:
    return _whole(text, 1, MAX_ORDERS)


def port(text: str) -> int:
    """Read the number of a port.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    return _whole(text, 1, 65_535)


def seed(text: str) -> int:
    """Read a seed.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    return _whole(text, 0, 2**31 - 1)


def rate(text: str) -> float:
    """Read payments a second.

    Raises:
        argparse.ArgumentTypeError: They are none.
    """
    return _number(text, 0.1, MAX_RATE)


def _seconds(text: str) -> float:
    return _number(text, 1, 86_400)


def _number(text: str, low: float, high: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not low <= number <= high:  # not-a-number fails this as well
        raise argparse.ArgumentTypeError(
            f"must be a number from {low:g} to {high:g}, not {text[:40]!r}"
        )
    return number
