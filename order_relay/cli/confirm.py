"""Asking a person before something is done that cannot be undone."""

from __future__ import annotations

import signal
from types import FrameType

import click


def refused(question: str, otherwise: str) -> int:
    """Ask on the terminal; return 0 for yes, else say ``otherwise`` and return the exit status.

    Ctrl-C is a no with the status of a signal. It works at once: while somebody is asked the loop
    stands still, and its own handler would only be heard of after the answer.
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
