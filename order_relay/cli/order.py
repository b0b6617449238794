"""``order-relay order``."""

from __future__ import annotations

import asyncio
from typing import Any

import click
from yarl import URL

from order_relay.cli import command, output
from order_relay.cli.fallback.rows import open_table
from order_relay.deliveries.entries import Entry, decode_entry, entry_key
from order_relay.deliveries.lookup import (
    ask_worker,
    entry_fields,
    get_object,
    make_client,
    saved_fields,
)
from order_relay.errors import DatabaseUnavailable, RelayError
from order_relay.kafka.topic_reader import TopicReader
from order_relay.model.order_paid import is_order_id
from order_relay.settings import Settings, load_settings
from order_relay.web.server import NOT_AN_ID

ASK_SECONDS = 10.0
# For reading the whole changelog: in a minute some ten million entries.
READ_SECONDS = 60.0


@command.define(
    click.argument("order_id"),
    click.option(
        "--url",
        type=command.URL,
        help="A worker's URL; by default ADVERTISED_URL, else WEB_HOST:WEB_PORT.",
    ),
    command.CONSUMER,
    command.JSON,
)
async def order(*, order_id: str, url: str | None, consumer: str | None, as_json: bool) -> int:
    """Show the state of an order.

    If no worker answers, it reads the changelog in Kafka, which has finished records only, then the
    fallback table. Exit status: 1 if the order is unknown.
    """
    if not is_order_id(order_id):
        raise click.UsageError(f"ORDER_ID={order_id[:40]!r} {NOT_AN_ID}")
    found = await _ask(url or str(load_settings().own_url), order_id, consumer)
    if "error" in found:
        raise click.ClickException(str(found["error"]))
    if as_json:
        output.json_line(found)
    else:
        output.print_fields((name, value) for name, value in found.items() if value is not None)
    return 0


async def _ask(url: str, order_id: str, consumer: str | None) -> dict[str, Any]:
    async with make_client(ASK_SECONDS) as client:
        if consumer is None:
            stats = await get_object(client, URL(url) / "stats", {})
            names = None if isinstance(stats, str) else stats.body.get("consumers")
            if isinstance(names, list) and len(names) > 1:
                raise command.consumer_error(None, [str(name) for name in names])
        answer = await ask_worker(client, url, order_id, {}, consumer)
    if isinstance(answer, str):
        problem = answer
    elif "error" in answer.body or "state" in answer.body:
        return answer.body
    else:
        problem = "it is not an order relay"
    settings = command.consumer_named(consumer).settings
    if settings.deliveries_store == "off":
        found = {"error": f"no worker answers at {url}: {problem}"}
    else:
        output.stderr_console().print(
            f"No worker answers at {url} ({problem}): reading "
            f"{settings.deliveries_changelog_topic} in Kafka"
        )
        found = await read_changelog(settings, order_id)
    if "error" in found:
        return await _saved(settings, order_id) or found
    return found


async def _saved(settings: Settings, order_id: str) -> dict[str, Any] | None:
    """Return the order's fields if it is in the fallback table."""
    try:
        async with open_table(settings) as table:
            row = await table.find_saved(settings.order_paid_topic, entry_key(order_id))
    except (click.ClickException, DatabaseUnavailable) as error:
        output.stderr_console().print(f"The fallback table was not read: {error}")
        return None
    return saved_fields(order_id, row) if row is not None else None


async def read_changelog(settings: Settings, order_id: str) -> dict[str, Any]:
    """Return the fields of a finished order by the table's changelog, or ``error``."""
    try:
        async with asyncio.timeout(READ_SECONDS):
            entry = await newest_entry(settings, entry_key(order_id))
    except TimeoutError:  # an entry that was read by then may be an old one
        return {
            "error": f"the changelog could not be read to its end in {READ_SECONDS:.0f} s: "
            "start a worker, and ask it"
        }
    except RelayError as error:
        return {"error": f"the changelog cannot be read: {error}"}
    if entry is not None:
        return entry_fields(entry)
    return {
        "error": f"order {order_id} is not known: no record of it was finished in the last "
        f"{settings.deliveries_retention_hours:g} hours"
    }


async def newest_entry(settings: Settings, key: bytes) -> Entry | None:
    """Return the newest entry of a key.

    Raises:
        RelayError: Kafka did not answer in time, or there is no such topic.
    """
    entries: list[Entry | None] = []
    async with TopicReader(settings, settings.deliveries_changelog_topic) as changelog:
        for partition, extent in (await changelog.extents()).items():
            newest = None
            async for message in changelog.messages(partition, *extent):
                if message.key() == key:
                    entry = decode_entry(bytes(message.value() or b""))  # None: it was removed
                    if not (entry and newest) or newest.finished_ms <= entry.finished_ms:
                        newest = entry
            entries.append(newest)
    return max(filter(None, entries), key=lambda entry: entry.finished_ms, default=None)
