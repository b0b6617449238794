"""``faust -A app dlq-show``."""

from __future__ import annotations

import sys

import click
from faust.cli.base import argument, option

from order_relay.cli.command import (
    CONSUMER_OPTION,
    JSON_OPTION,
    RelayCommand,
    options,
    usage_error,
)
from order_relay.cli.dlq.filters import POSITION, LetterPosition
from order_relay.cli.dlq.formatting import whole_letter
from order_relay.cli.dlq.open_topic import open_topic
from order_relay.cli.output import json_line, make_table, plain, stdout_console, writing_stdout
from order_relay.dead_letters.letter import Letter


class dlq_show(RelayCommand):  # noqa: N801 - Faust takes the command's name from here
    r"""Show everything of one dead letter, by its position: PARTITION:OFFSET.

    Spring's numbers are decoded; what is not UTF-8 text is shown in hexadecimal digits after \x.
    """

    options = options(
        argument("position", nargs=-1, metavar="PARTITION:OFFSET"),
        option(
            "--value",
            "only_value",
            is_flag=True,
            help="Only write the value to stdout, byte for byte.",
        ),
        CONSUMER_OPTION,
        JSON_OPTION,
    )

    async def work(self, *, position: tuple[str, ...], only_value: bool, as_json: bool) -> int:
        """Print the letter."""
        where = _parsed(position)
        if only_value and as_json:
            raise usage_error("give --value or --json, not both")
        async with open_topic(self.app, self.settings) as topic:
            extent = topic.extents.get(where.partition)
            letter: Letter | None = None
            if extent is not None and extent.low <= where.offset < extent.end:
                async for found in topic.log.letters(*where, where.offset + 1):
                    letter = found
            if letter is None:
                name = topic.log.topic
                raise click.ClickException(f"there is no letter {where} in topic {name}")
            fields = whole_letter(letter, redriven=where.offset in topic.redriven[where.partition])
        if only_value:
            with writing_stdout():
                sys.stdout.flush()
                sys.stdout.buffer.write(letter.value or b"")
                sys.stdout.buffer.flush()
            return 0
        if as_json:
            json_line(fields)
            return 0
        headers = fields.pop("headers")
        body = fields.pop("value")
        table = make_table(("field", "value"))
        for name, value in fields.items():
            table.add_row(name, "" if value is None else plain(str(value)))
        for name, value in headers:
            text = "(null)" if value is None else plain(str(value))
            table.add_row(plain(f"header {name}"), text)
        table.add_row("value", "(null: a tombstone)" if body is None else plain(body))
        stdout_console().print(table)
        return 0


def _parsed(texts: tuple[str, ...]) -> LetterPosition:
    if not 1 <= len(texts) <= 2:  # also partition and offset as two arguments
        raise usage_error("say which letter: one PARTITION:OFFSET, such as 0:17")
    try:
        return POSITION.convert(":".join(texts), None, None)
    except click.UsageError as error:
        raise usage_error(error.message) from None
