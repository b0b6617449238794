"""What all commands share: options, settings, an event loop, signals and the exit status."""

from __future__ import annotations

import asyncio
import errno
import functools
import importlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any, Protocol, cast

import click

from order_relay.cli.output import StdoutLost, flush_stdout
from order_relay.errors import KafkaUnavailable, RelayError
from order_relay.logs import rate_limit
from order_relay.logs.standard_streams import escape_unencodable
from order_relay.settings import Settings, load_settings
from order_relay.settings.rules import check_url
from order_relay.settings.settings import load_log_format

if TYPE_CHECKING:
    from order_relay.kafka.producer import KafkaProducer
    from order_relay.settings.consumers import ConfiguredConsumer

Work = Callable[..., Coroutine[Any, Any, int]]

# Only the owner may read the files that a command creates.
OWNER_ONLY = 0o077
# How long to look for the reason why Kafka cannot be reached.
DIAGNOSE_SECONDS = 5.0
DRY_RUN = click.option("--dry-run", is_flag=True, help="Only show what would be done.")
YES = click.option("--yes", is_flag=True, help="Do not ask.")
ALL = click.option("--all", "everything", is_flag=True, help="All that the filters leave.")
CONSUMER = click.option("--consumer", default=None, help="The consumer, if there are several.")
JSON = click.option(
    "--json",
    "as_json",
    is_flag=True,
    callback=lambda ctx, _, value: value or ctx.find_root().params.get("as_json", False),
    help="Print JSON lines.",
)


class Parsed(click.ParamType):
    """A value that a function parses; its ``ValueError`` becomes the error for the argument.

    ``--help`` shows its name in upper case.
    """

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        """Parse the text."""
        try:
            return self._parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _not_empty(text: str) -> str:
    if not text:
        raise ValueError("must not be empty: it would find everything")
    return text


def _url(text: str) -> str:
    check_url(text)
    return text


# Text to find: an unset shell variable must not select all.
PART = Parsed("text", _not_empty)
URL = Parsed("url", _url)


class RelayCommand(click.Command):
    """A command whose options must be UTF-8 text. Arguments may be any bytes, as files' names."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; raises ``UsageError``."""
        rest = super().parse_args(ctx, args)
        for param in self.params:
            value = ctx.params.get(param.name or "")
            if isinstance(param, click.Option) and isinstance(value, str):
                try:
                    value.encode()
                except UnicodeEncodeError:  # Python passes other bytes as surrogates
                    raise click.UsageError(
                        f"{param.opts[0]} {value[:40]!r} must be UTF-8 text"
                    ) from None
        return rest


def define(*options: Callable[[Any], Any]) -> Callable[[Work], click.Command]:
    """Make a command of an async function, whose docstring is its help.

    The function gets its arguments by name, and returns the exit status. A ``RelayError`` that it
    raises is printed on one line.

    Args:
        options: Arguments and options of click, in the order in which ``--help`` lists them.
    """

    def decorate(work: Work) -> click.Command:
        @functools.wraps(work)
        def run(**given: Any) -> int:
            return _run(work(**given), changes="dry_run" in given)

        for option in reversed(options):
            run = option(run)
        return click.command(cls=RelayCommand)(run)

    return decorate


def _run(work: Coroutine[Any, Any, int], *, changes: bool) -> int:
    _prepare_process(click.get_current_context().find_root().params.get("loglevel"))
    try:
        status = asyncio.run(work)
        flush_stdout()
    except KafkaUnavailable as error:
        text = asyncio.run(explain_outage(load_settings())) or str(error)
        raise click.ClickException(text) from None
    except RelayError as error:
        raise click.ClickException(str(error)) from None
    except StdoutLost as error:
        # The reader of a list may close the pipe early. For a command that changes something it is
        # an error: the command has stopped before its end.
        if error.errno == errno.EPIPE and not changes:
            return 1
        raise click.ClickException(str(error)) from None
    return status


async def explain_outage(settings: Settings) -> str:
    """Return why Kafka cannot be reached, with the setting to change; empty: it was not found.

    librdkafka's own errors do not name it.
    """
    from order_relay.kafka.diagnosis import diagnose_connection  # noqa: PLC0415 - loads a client

    reason = await diagnose_connection(settings, DIAGNOSE_SECONDS)
    return reason and str(KafkaUnavailable(settings.kafka_bootstrap_servers, reason))


def _prepare_process(level: str | None) -> None:
    """Log errors only, unless ``--loglevel`` asks for more: the command prints its results."""
    escape_unencodable()
    os.umask(OWNER_ONLY)
    if load_log_format() == "json":
        from order_relay.logs import json_format  # noqa: PLC0415 - seldom needed

        json_format.set_up()
    logging.basicConfig(stream=sys.stderr, format="[%(asctime)s] [%(levelname)s] %(message)s")
    # basicConfig sets no level where a handler exists, as with LOG_FORMAT=json.
    logging.getLogger().setLevel((level or "error").upper().replace("CRIT", "CRITICAL"))
    if level is None:
        # The Kafka clients repeat an outage again and again; the command reports it once.
        for name in ("order_relay.kafka.producer", "aiokafka"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    rate_limit.install()


# --- the application ----------------------------------------------------------------------------


class Application(Protocol):
    """The part of ``RelayApp`` that commands use."""

    consumers: Sequence[ConfiguredConsumer]
    declared: Sequence[ConfiguredConsumer]


def application_name() -> str:
    """Return the application that ``-A`` names."""
    return str(click.get_current_context().find_root().params["app"])


def import_application() -> ModuleType:
    """Import the module of the application; raises ``UsageError`` if that fails."""
    name = application_name()
    try:
        return importlib.import_module(name.partition(":")[0])
    except Exception as error:  # noqa: BLE001 - whatever a module of the user's raises
        raise click.UsageError(
            f"the application -A {name[:80]} cannot be imported: {type(error).__name__}: {error}; "
            "run this in its folder, or name its module with -A"
        ) from None


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def worker(arguments: Sequence[str]) -> None:
    """Run a worker, with the arguments of ``faust -A app worker``."""
    load_application()
    # The list itself: Faust keeps a reference to it.
    level = click.get_current_context().find_root().params["loglevel"]
    before = ("-l", level) if level else ()
    sys.argv[:] = ["faust", "-A", application_name(), *before, "worker", *arguments]
    from faust.cli.faust import cli  # noqa: PLC0415 - reads the arguments when it is imported

    cli(prog_name="faust")


def load_application() -> Application:
    """Return the application, with its consumers.

    Raises:
        UsageError: It cannot be imported.
        SystemExit: A setting or a consumer is wrong; one line tells which.
    """
    module, name = import_application(), application_name()
    found = getattr(module, name.partition(":")[2] or "app", None)
    if not hasattr(found, "declared"):
        raise click.UsageError(
            f"-A {name[:80]}: its attribute app is not an application of the relay"
        )
    return cast(Application, found)


def consumer_named(name: str | None) -> ConfiguredConsumer:
    """Return the application's consumer of ``--consumer``; see ``choose_consumer``."""
    return choose_consumer(load_application(), name)


def choose_consumer(app: Application, name: str | None) -> ConfiguredConsumer:
    """Return the consumer that ``--consumer`` names; without it the only one that runs.

    Raises:
        UsageError: The option is missing, or no consumer has that name.
    """
    consumers = {one.name: one for one in app.declared}
    if name is None and len(app.consumers) == 1:
        return app.consumers[0]
    if name not in consumers:
        raise consumer_error(name, list(consumers))
    return consumers[name]


def consumer_error(name: str | None, known: Sequence[str]) -> click.UsageError:
    """Return the error for ``--consumer`` that is missing or wrong."""
    given = f"--consumer {name[:80]!r}" if name is not None else "--consumer"
    return click.UsageError(f"{given} must name one of: {', '.join(known)}")


@asynccontextmanager
async def open_producer(settings: Settings) -> AsyncIterator[KafkaProducer]:
    """Start a producer, and stop it at the end."""
    from order_relay.kafka.producer import KafkaProducer  # noqa: PLC0415 - loads a client

    producer = KafkaProducer(settings)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


# --- signals and questions ----------------------------------------------------------------------


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


def must_confirm(*, yes: bool, dry_run: bool, needs_yes: str = "") -> bool:
    """Return whether to ask before the change: neither --yes nor --dry-run, and a terminal.

    Args:
        yes: The option --yes.
        dry_run: The option --dry-run.
        needs_yes: What needs --yes where stdin is not a terminal; empty: nothing does.

    Raises:
        UsageError: --yes is needed and missing.
    """
    if yes or dry_run:
        return False
    if needs_yes and not sys.stdin.isatty():
        raise click.UsageError(
            f"{needs_yes} --yes where stdin is not a terminal, or --dry-run to only look"
        )
    return sys.stdin.isatty()


def refused(question: str, otherwise: str) -> int:
    """Ask on the terminal; return 0 for yes, else print ``otherwise`` and return the exit status.

    Ctrl-C means no, with the exit status of a signal. It works at once: the prompt blocks the
    event loop, whose own signal handler would only run after the answer.
    """
    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        if click.confirm(question, err=True):
            return 0
    except click.Abort:  # Ctrl-C, or the end of the input
        click.echo(err=True)
    finally:
        signal.signal(signal.SIGINT, before)
    click.echo(otherwise, err=True)
    return 128 + signal.SIGINT if interrupted else 1
