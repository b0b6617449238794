"""The command ``order-relay``, which imports a subcommand only when it runs.

Importing Faust, SQLAlchemy and the Kafka clients takes a second: ``--help`` and completion do
without.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

try:
    import click
except ModuleNotFoundError:
    sys.exit("order-relay: its commands need pip install 'order-relay[worker]'")
from click.shell_completion import CompletionItem, get_completion_class

from order_relay.logs.standard_streams import open_closed_streams
from order_relay.version import VERSION

NAME = "order-relay"
COMPLETE_VARIABLE = "_ORDER_RELAY_COMPLETE"


class LazyGroup(click.Group):
    """A group that knows a line about each command, and imports it when it is used."""

    def __init__(self, *, places: Mapping[str, tuple[str, str]], **options: Any) -> None:
        """Make a group.

        Args:
            places: By the command's name: ``module:attribute`` in this package, and a line about
                it.
            options: See ``click.Group``.
        """
        super().__init__(invoke_without_command=True, callback=_print_help, **options)
        self._places = places

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the help."""
        return list(self._places)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None: there is none of this name."""
        if cmd_name not in self._places:
            return None
        module, _, attribute = self._places[cmd_name][0].partition(":")
        found = getattr(importlib.import_module(f"order_relay.cli.{module}"), attribute)
        return found if isinstance(found, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self._places.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete names of commands without importing them, and options."""
        return [
            *(
                CompletionItem(name, help=line)
                for name, (_, line) in self._places.items()
                if name.startswith(incomplete)
            ),
            *click.Command.shell_complete(self, ctx, incomplete),
        ]


@click.pass_context
def _print_help(ctx: click.Context, /, **_: object) -> None:
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell, such as: eval "$(order-relay completion bash)"."""
    made = get_completion_class(shell)
    if made is not None:
        click.echo(made(group, {}, NAME, COMPLETE_VARIABLE).source())


dlq = LazyGroup(
    help="Work on dead letters: records that a consumer gave up.",
    places={
        "list": ("dlq.letters:list_letters", "List or count dead letters."),
        "show": ("dlq.letters:show_letter", "Show one dead letter."),
        "redrive": ("dlq.redrive:redrive", "Publish dead letters again."),
        "discard": ("dlq.redrive:discard", "Close dead letters without delivering them."),
        "purge": ("dlq.redrive:purge", "Delete letters that were redriven or discarded."),
    },
)
fallback = LazyGroup(
    help="Work on the fallback table: messages that Kafka refused.",
    places={
        "list": ("fallback.rows:list_rows", "List rows."),
        "stats": ("fallback.rows:count_rows", "Count rows by status."),
        "requeue": ("fallback.bulk_change:requeue", "Make FAILED rows PENDING again."),
        "discard": ("fallback.bulk_change:discard", "Delete rows without publishing them."),
    },
)
group = LazyGroup(
    name=NAME,
    help="Run and operate the order relay.",
    places={
        "worker": ("command:worker", "Run a worker."),
        "status": ("status:status", "Show the state of the workers."),
        "check": ("check:check", "Check settings and connections."),
        "order": ("order:order", "Show the state of an order."),
        "audit": ("audit:audit", "Account for every record."),
        "publish": ("publish.publish:publish", "Publish events."),
        "dlq": ("main:dlq", "Dead letters: list, show, redrive, discard, purge."),
        "fallback": ("main:fallback", "Fallback table: list, stats, requeue, discard."),
        "completion": ("main:completion", "Print a shell's completion script."),
    },
    params=[
        click.Option(
            ["-A", "--app"],
            default="app",
            metavar="MODULE",
            help="The application's module; by default app.",
        ),
        click.Option(
            ["-l", "--loglevel"],
            type=click.Choice(["debug", "info", "warn", "error", "crit"], case_sensitive=False),
            help="What to log on stderr; by default errors.",
        ),
        click.Option(["--json", "as_json"], is_flag=True, hidden=True),
    ],
)
click.version_option(VERSION, message="%(prog)s %(version)s", prog_name=NAME)(group)


def main() -> NoReturn:
    """Run the command that ``sys.argv`` names, and end the process with its exit status."""
    open_closed_streams()
    try:
        here = str(Path.cwd())
    except OSError as error:  # it was deleted
        sys.exit(f"Error: the current folder cannot be used: {error.strerror}")
    if here not in sys.path:  # as Faust does, so that it finds the application
        sys.path.insert(0, here)
    try:
        status = group.main(prog_name=NAME, complete_var=COMPLETE_VARIABLE, standalone_mode=False)
    except click.Abort:
        click.echo("Aborted!", err=True)
        status = 1
    except click.ClickException as error:
        click.echo(f"Error: {' '.join(error.format_message().split())}", err=True)
        status = error.exit_code
    except OSError as error:  # --help, to a full disk
        click.echo(f"Error: {error.strerror or error}", err=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)
