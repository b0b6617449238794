"""Runs ``order-relay dlq …`` for a stage, and makes letters for it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.support.orders import Headers, Order
from tests.support.publish_command import Commands
from tests.support.stage import Stage


def relay_on(stage: Stage, folder: Path, **settings: object) -> Commands:
    """A folder to run commands in, with the settings of a stage's workers, and more."""
    given = stage.names
    if stage.session_timeout_ms is not None:
        given["kafka_session_timeout_ms"] = stage.session_timeout_ms
    return Commands(folder, **(given | settings))


def redriving(stage: Stage) -> Stage:
    """The group that stores what was redriven, and its dead-letter topic."""
    return replace(stage, topic=stage.dlq_topic, group_id=f"{stage.group_id}-dlq-redrive")


def letter(
    number: int, *, reason: str = "rejected", partition: int = 0, headers: Headers = ()
) -> Order:
    """A letter as the relay writes it, without Spring's headers."""
    return Order(
        b"%d" % number,
        b'{"orderId":%d}' % number,
        (
            ("mine", b"\xff"),
            ("event-id", b"paid-%d" % number),
            ("kafka_dlt-exception-message", b"no such product"),
            ("dlq-reason", reason.encode()),
            ("dlq-http-status", b"422"),
            ("dlq-failed-at", b"2025-12-19T10:30:00.000+00:00"),
            *headers,
        ),
        partition,
    )


async def put_letters(stage: Stage, letters: Sequence[Order]) -> None:
    """Write letters to the dead-letter topic."""
    await replace(stage, topic=stage.dlq_topic).publish(letters)


async def positions(commands: Commands, *arguments: str) -> list[str]:
    """The positions of the listed letters."""
    listed = (await commands("dlq", "list", "--json", *arguments)).objects
    return [f"{one['partition']}:{one['offset']}" for one in listed]
