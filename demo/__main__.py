"""``python -m demo``: see the package."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from demo.command_line import (
    COUNTED_RATE,
    LIVE_RATE,
    LOGGER_PORT,
    ORDER_LOGGING,
    PORT,
    RATE,
    Options,
    environment_option,
    run_command,
)
from demo.scenario import Scenario
from order_relay.errors import RelayError


def read_options(params: Mapping[str, Any]) -> Options:
    """Return the options that the command line and the environment give."""
    given = {name: value for name, value in params.items() if value is not None}
    if "orders" in given:
        given.setdefault("rate", COUNTED_RATE)
    names = (name.strip() for name in given.get("consumers", "").split(","))
    given["consumers"] = tuple(dict.fromkeys((ORDER_LOGGING, *filter(None, names))))
    return Options(**given)


@click.command()
@click.option(
    "--orders",
    # The embedded cluster keeps its records in memory. More than this would not fit.
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    help="Pay N orders, wait until each is accounted for, print the ledger; status 0 only if it "
    "closes. By default go on until Ctrl-C.",
)
@click.option(
    "--rate",
    type=RATE,
    metavar="R",
    help=f"Payments a second: by default {LIVE_RATE:g}, {COUNTED_RATE:g} with --orders.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**31 - 1),
    metavar="S",
    help=f"Another seed gives other orders and failures (default {Options.seed}).",
)
@click.option(
    "--give-up-after",
    type=click.FloatRange(1, 86_400),
    metavar="SECONDS",
    help=f"With --orders: longest wait without any progress (default {Options.give_up_after:g}).",
)
@LOGGER_PORT
@environment_option("WEB_PORT", type=PORT, help="Port of the worker's web server.")
@environment_option("CONSUMERS", help="Further consumers, with commas.")
def main(**given: Any) -> int:
    """Run the order relay with an embedded Kafka cluster, a sample shop and a sample logger.

    Nothing is kept afterwards.
    """
    os.umask(0o077)  # databases and logs hold orders
    folder = Path(tempfile.mkdtemp(prefix="order-relay-"))
    # Our own log would run through the live view.
    logging.basicConfig(
        filename=folder / "demo.log",
        level=logging.INFO,
        format="[%(asctime)s] [%(process)d] [%(levelname)s] %(name)s: %(message)s",
    )
    try:
        return asyncio.run(Scenario(read_options(given), Console(), folder).run())
    except RelayError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


if __name__ == "__main__":
    run_command(main)
