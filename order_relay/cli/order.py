"""``faust -A app order-status``."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, cast

import click
from faust.cli.base import argument, option
from yarl import URL

from order_relay.cli.command import (
    CONSUMER_OPTION,
    JSON_OPTION,
    Application,
    RelayCommand,
    options,
    usage_error,
)
from order_relay.cli.fallback.open_table import open_table
from order_relay.cli.output import json_line, make_table, plain, stderr_console, stdout_console
from order_relay.deliveries.entries import decode_entry, entry_key
from order_relay.deliveries.lookup import ask_worker, entry_fields, make_client, saved_fields
from order_relay.deliveries.recovery import ChangelogUnreadable, Recovery
from order_relay.errors import DatabaseUnavailable
from order_relay.fallback.store import find_saved
from order_relay.kafka.client_config import client_config
from order_relay.model.order_paid import is_order_id
from order_relay.settings.rules import check_url
from order_relay.web.server import NOT_AN_ID

ASK_SECONDS = 10.0
# For reading the whole changelog: in a minute some ten million entries.
READ_SECONDS = 60.0


class order_status(RelayCommand):  # noqa: N801 - Faust takes the command's name from here
    """Show the state of the order ORDER_ID.

    A worker is asked, and asks the others. If none answers, the table's changelog in Kafka is
    read, which has finished records only, and then the fallback table. The exit status is 0 when
    the order is known, 1 when it is not.
    """

    options = options(
        argument("order_id", metavar="ORDER_ID", required=False),
        option(
            "--url",
            default=None,
            metavar="URL",
            help="Ask the worker at this URL; by default ADVERTISED_URL, else WEB_HOST:WEB_PORT.",
        ),
        CONSUMER_OPTION,
        JSON_OPTION,
    )

    async def work(self, *, order_id: str | None, url: str | None, as_json: bool) -> int:
        """Print the order's fields."""
        if order_id is None:
            raise usage_error("ORDER_ID is missing: give an order's id")
        if not is_order_id(order_id):
            raise usage_error(f"ORDER_ID={order_id[:40]!r} {NOT_AN_ID}")
        if url is not None:
            try:
                check_url(url)
            except ValueError as error:
                raise usage_error(f"--url={url[:80]!r} {error}") from None
        found = await self._ask(URL(url) if url else self.settings.own_url, order_id)
        if "error" in found:
            raise click.ClickException(str(found["error"]))
        if as_json:
            json_line(found)
            return 0
        table = make_table(("field", "value"))
        for name, value in found.items():
            if value is not None:
                table.add_row(name, plain(str(value)))
        stdout_console().print(table)
        return 0

    async def _ask(self, url: URL, order_id: str) -> dict[str, Any]:
        async with make_client(ASK_SECONDS) as client:
            answer = await ask_worker(client, str(url), order_id, {}, self.consumer.name)
        if isinstance(answer, str):
            problem = answer
        elif "error" in answer.body or "state" in answer.body:
            return answer.body
        else:
            problem = "it is not an order relay"
        if self.settings.deliveries_store == "off":
            found = {"error": f"no worker answers at {url}: {problem}"}
        else:
            stderr_console().print(
                f"No worker answers at {url} ({problem}): reading "
                f"{self.settings.deliveries_changelog_topic} in Kafka"
            )
            found = await self._read(order_id)
        if "error" in found:
            return await self._saved(order_id) or found
        return found

    async def _saved(self, order_id: str) -> dict[str, Any] | None:
        """Return the order's fields if it is in the fallback table."""
        try:
            async with open_table(self.settings) as table:
                row = await find_saved(table, self.settings.order_paid_topic, entry_key(order_id))
        except (click.ClickException, DatabaseUnavailable) as error:
            stderr_console().print(f"The fallback table was not read: {error}")
            return None
        return saved_fields(order_id, row) if row is not None else None

    async def _read(self, order_id: str) -> dict[str, Any]:
        settings = self.settings
        recovery = Recovery(client_config(settings), settings.deliveries_changelog_topic)
        partition_of = cast(Application, self.app).partition_of
        stop = threading.Event()
        timer = threading.Timer(READ_SECONDS, stop.set)
        timer.daemon = True
        timer.start()
        try:
            value = await asyncio.to_thread(
                recovery.read_order,
                entry_key(order_id),
                settings.order_paid_topic,
                stop,
                partition_of,
            )
        except ChangelogUnreadable as error:
            if stop.is_set():
                return {
                    "error": f"the changelog could not be read to its end in {READ_SECONDS:.0f} s: "
                    "start a worker, and ask it"
                }
            return {"error": f"the changelog cannot be read: {error}"}
        finally:
            timer.cancel()
        entry = decode_entry(value) if value is not None else None
        if entry is not None:
            return entry_fields(entry)
        if stop.is_set():
            servers = settings.kafka_bootstrap_servers
            return {"error": f"Kafka did not answer in {READ_SECONDS:.0f} s at {servers}"}
        return {
            "error": f"order {order_id} is not known: no record of it was finished in the last "
            f"{settings.deliveries_retention_hours:g} hours"
        }
