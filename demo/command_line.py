"""What the commands of the demo share: options, one-line errors, and Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import click
from aiohttp import web

from order_relay.errors import PermanentError, RelayError
from order_relay.logs.standard_streams import escape_unencodable

HOST = "127.0.0.1"
LIVE_RATE = 20.0
COUNTED_RATE = 100.0
ORDER_LOGGING = "order_logging"  # the consumer that the ledger is about

PORT = click.IntRange(1, 65_535)
RATE = click.FloatRange(0.1, 1000)
LISTEN_ON = click.option("--host", default=HOST, show_default=True, help="Address to listen on.")


def environment_option(variable: str, **how: Any) -> Callable[[Any], Any]:
    """Return an option of a command that an environment variable sets, too."""
    name = f"--{variable.lower().replace('_', '-')}"
    return click.option(name, envvar=variable, show_envvar=True, show_default=True, **how)


LOGGER_PORT = environment_option(
    "LOGGER_PORT", type=PORT, default=3000, help="Port of the sample logger."
)


class CannotRun(PermanentError):
    """The demo cannot start or go on. The message is one line that says what to do."""


def on_stop_signal(call: Callable[[], object]) -> None:
    """Call this at every Ctrl-C, SIGTERM and SIGHUP, in the running loop."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, call)


def run_command(command: click.Command) -> NoReturn:
    """Run a command and end the process with its exit status; an error is one line on stderr."""
    escape_unencodable()
    try:
        sys.exit(command.main(standalone_mode=False))
    except click.ClickException as error:
        message, status = error.format_message(), error.exit_code
    except RelayError as error:
        message, status = str(error), 1
    click.echo(f"quickstart: {message}", err=True)
    sys.exit(status)


def run_until_stopped(work: Coroutine[Any, Any, object]) -> None:
    """Run a command's work until Ctrl-C or SIGTERM cancels it."""

    async def run() -> None:
        task = asyncio.create_task(work)
        on_stop_signal(task.cancel)
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(run())


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
            raise CannotRun(
                f"port {port}, needed for {server}, cannot be used ({error.strerror}): "
                f"choose another with {variable}"
            ) from error


@asynccontextmanager
async def listening(
    routes: Sequence[web.RouteDef], host: str, port: int, server: str, variable: str
) -> AsyncIterator[int]:
    """Serve these routes; gives the port, a free one for 0. The end closes every connection.

    Raises:
        CannotRun: The port is in use or not allowed.
    """
    check_port(port, server, variable, host)
    application = web.Application()
    application.add_routes(routes)
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


@dataclass(frozen=True)
class Options:
    """How the demo is to run."""

    orders: int | None = None  # to pay before it ends; None goes on until Ctrl-C
    rate: float = LIVE_RATE  # payments a second
    seed: int = 1  # the same seed gives the same orders and the same failures
    give_up_after: float = 120.0  # longest wait without any progress
    logger_port: int = 3000
    web_port: int = 6066
    consumers: Sequence[str] = (ORDER_LOGGING,)  # this one is always the first
