"""What all commands share: options, an event loop, one-line errors, signals and the exit status.

A command does not start the worker. It takes the settings from the application, and makes the
clients that it needs.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, ClassVar, NoReturn, Protocol, cast

import click
from faust.cli.base import AppCommand, _apply_options, cli, option

from order_relay.cli.output import StdoutLost, flush_stdout
from order_relay.errors import RelayError
from order_relay.kafka.producer import KafkaProducer
from order_relay.logs import rate_limit
from order_relay.settings import Settings
from order_relay.settings.consumers import ConfiguredConsumer

JSON_OPTION = option("--json", "as_json", is_flag=True, help="Print JSON lines, for programs.")
DRY_RUN_OPTION = option("--dry-run", is_flag=True, help="Only show what would be done.")
YES_OPTION = option("--yes", is_flag=True, help="Do not ask.")
ALL_OPTION = option("--all", "everything", is_flag=True, help="All that the filters leave.")
CONSUMER_OPTION = option(
    "--consumer", default=None, help="Of this consumer; needed where there are several."
)


class Application(Protocol):
    """The part of ``RelayApp`` that commands use."""

    settings: Settings
    consumers: Sequence[ConfiguredConsumer]
    declared: Sequence[ConfiguredConsumer]
    partition_of: Callable[[bytes, int], int]


class OneLineCommand(click.Command):
    """A click command that reports a wrong argument in one line."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments.

        Raises:
            ClickException: An argument is wrong; the text names it and what is allowed.
        """
        try:
            rest = super().parse_args(ctx, args)
        except click.UsageError as error:
            raise usage_error(" ".join(error.format_message().split())) from None
        for param in self.params:
            # An argument may be a file's name, which may be any bytes.
            if isinstance(param, click.Option):
                _check_utf8(param.opts[0], ctx.params.get(param.name or ""))
        return rest


def _check_utf8(name: str, value: object) -> None:
    # Python passes other bytes of the command line as surrogates.
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise usage_error(f"{name} {value[:40]!r} must be UTF-8 text") from None


def usage_error(message: str) -> click.ClickException:
    """Return the error for a wrong argument: one line on stderr, exit status 2."""
    error = click.ClickException(message)
    error.exit_code = 2
    return error


class RelayCommand(AppCommand):
    """A command of the relay; subclasses write ``work``."""

    abstract: ClassVar[bool] = True

    # Runs the command: gets its options by name, returns the exit status. A RelayError is printed
    # on one line.
    work: Callable[..., Coroutine[Any, Any, int]]

    @property
    def settings(self) -> Settings:
        """The consumer's settings where the command has ``--consumer``, else the worker's."""
        if CONSUMER_OPTION in (self.options or ()):
            return self.consumer.settings
        return cast(Application, self.app).settings

    @property
    def consumer(self) -> ConfiguredConsumer:
        """The consumer that ``--consumer`` names; without it the only one that runs.

        Raises:
            ClickException: The option is missing, or no consumer has that name.
        """
        app = cast(Application, self.app)
        consumers = {one.name: one for one in app.declared}
        name = self.kwargs.get("consumer")
        if name is None and len(app.consumers) == 1:
            return app.consumers[0]
        if name not in consumers:
            given = f"--consumer {name[:80]!r}" if name is not None else "--consumer"
            raise usage_error(f"{given} must name one of: {', '.join(consumers)}")
        return consumers[name]

    @classmethod
    def as_click_command(cls) -> Callable[..., Any]:
        """Make the click command. Faust's own would print a stack trace for any error."""

        @click.pass_context
        @functools.wraps(cls, updated=())
        def run(*args: Any, **kwargs: Any) -> NoReturn:
            cls(*args, **kwargs)()

        made = cli.command(help=cls.__doc__, cls=OneLineCommand)(run)
        return cast(Callable[..., Any], _apply_options(cls.options or [])(made))

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run the command in an event loop, and end the process with its exit status."""
        _log_to_stderr(self._loglevel)
        given = {name: value for name, value in self.kwargs.items() if name != "consumer"}
        given["as_json"] = given["as_json"] or self.json  # Faust has the option, too
        try:
            status = asyncio.run(self.work(**given))
            flush_stdout()
        except RelayError as error:
            raise click.ClickException(" ".join(str(error).split())) from None
        except StdoutLost as error:
            # The reader of a list may close the pipe early. For a command that changes something
            # it is an error: the command has stopped before its end.
            if error.errno == errno.EPIPE and "dry_run" not in self.kwargs:
                raise SystemExit(1) from None
            raise click.ClickException(f"stdout cannot be written: {error.strerror}") from None
        raise SystemExit(status)


def options(*given: Callable[[Any], Any]) -> list[Callable[[Any], Any]]:
    """Return options as Faust wants them, in the order in which ``--help`` lists them."""
    return list(given)


@contextmanager
def handling_signals(stop: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Call ``stop`` on Ctrl-C and SIGTERM, which do not end the process meanwhile."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


@asynccontextmanager
async def open_producer(settings: Settings) -> AsyncIterator[KafkaProducer]:
    """Start a producer, and stop it at the end."""
    producer = KafkaProducer(settings)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


def _log_to_stderr(level: str | None) -> None:
    """Log errors only, unless ``--loglevel`` asks for more: the command prints its results."""
    logging.basicConfig(stream=sys.stderr, format="[%(asctime)s] [%(levelname)s] %(message)s")
    # basicConfig sets no level where a handler exists, as with LOG_FORMAT=json.
    logging.getLogger().setLevel(
        getattr(logging, level.upper(), logging.ERROR) if level else logging.ERROR
    )
    if level is None:
        # The Kafka clients repeat an outage again and again; the command reports it once.
        for name in ("order_relay.kafka.producer", "aiokafka"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    rate_limit.install()
