"""Asking for confirmation before a change."""

from __future__ import annotations

import signal
import sys
from types import FrameType

import click

from order_relay.cli.command import usage_error


def must_confirm(*, yes: bool, dry_run: bool, needs_yes: str = "") -> bool:
    """Return whether to ask before the change: neither --yes nor --dry-run, and a terminal.

    Args:
        yes: The option --yes.
        dry_run: The option --dry-run.
        needs_yes: What needs --yes where stdin is not a terminal; empty: nothing does.

    Raises:
        ClickException: --yes is needed and missing.
    """
    if yes or dry_run:
        return False
    if needs_yes and not sys.stdin.isatty():
        raise usage_error(
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
