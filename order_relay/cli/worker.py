"""``order-relay worker``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from order_relay.cli.command import application_name, import_application


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def worker(arguments: Sequence[str]) -> None:
    """Run a worker, as ``faust -A app worker`` does, with the same arguments."""
    import_application()
    # The list itself: Faust keeps a reference to it.
    level = click.get_current_context().find_root().params["loglevel"]
    before = ("-l", level) if level else ()
    sys.argv[:] = ["faust", "-A", application_name(), *before, "worker", *arguments]
    from faust.cli.faust import cli  # noqa: PLC0415 - reads the arguments when it is imported

    cli()
