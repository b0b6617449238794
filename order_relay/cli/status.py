"""``order-relay status``: what the running workers say of themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import aiohttp
import click
from yarl import URL

from order_relay.cli import command, output
from order_relay.deliveries.lookup import get_object, make_client

ASK_SECONDS = 10.0
# Some ten thousand partitions.
MAX_STATS_BYTES = 1024 * 1024

Figures = dict[str, Any]


@command.define(
    click.option(
        "--url",
        "urls",
        multiple=True,
        type=command.URL,
        help="A worker's URL, may be repeated; by default ADVERTISED_URL, else WEB_HOST:WEB_PORT.",
    ),
    command.JSON,
)
async def status(*, urls: Sequence[str], as_json: bool) -> int:
    """Show the state of the running workers.

    Exit status: 0 if all is well; 1 if something needs a person, such as an open dead letter or a
    FAILED row, or if one of several workers does not answer; 2 if none answers.
    """
    urls = urls or (str(command.worker_settings().own_url),)
    async with make_client(ASK_SECONDS) as client:
        answers = await asyncio.gather(*(_ask(client, URL(url)) for url in urls))
    silent = [
        f"no worker answers at {url}: {answer}"
        for url, answer in zip(urls, answers, strict=True)
        if isinstance(answer, str)
    ]
    if len(silent) == len(urls):
        raise click.UsageError("; ".join(silent))
    rows = [row for answer in answers if not isinstance(answer, str) for row in answer]
    if as_json:
        for row in rows:
            output.json_line(row)
    else:
        _print(rows)
    for line in silent:
        output.stderr_console().print(output.plain(line))
    return 1 if silent or any(row["problems"] for row in rows) else 0


async def _ask(client: aiohttp.ClientSession, url: URL) -> list[Figures] | str:
    """Return a summary of each consumer of a worker, or why there are none."""
    page, rows = url / "stats", []
    names: list[str | None] = [None]
    for name in names:  # the first answer adds the others
        answer = await get_object(
            client, page.with_query(consumer=name) if name else page, {}, MAX_STATS_BYTES
        )
        if isinstance(answer, str):
            return answer
        try:
            rows.append(_summary(str(url), answer.body))
            if name is None:
                names += [one for one in answer.body["consumers"] if one != rows[0]["consumer"]]
        except (KeyError, TypeError, AttributeError):
            return str(answer.body.get("error", "it is not an order relay of this version"))
    return rows


def _summary(url: str, figures: Figures) -> Figures:
    target, letters = figures["target"], figures["open_dead_letters"]
    lags = [one["lag"] for one in figures["partitions"]]
    return {
        "url": url,
        "consumer": figures["consumer"],
        "version": figures["version"],
        "target": target["state"],
        "since_seconds": target["since_seconds"],
        "said": target["said"],
        "lag": None if None in lags else sum(lags),
        "partitions": len(figures["partitions"]),
        "in_flight": figures["in_flight"],
        "open_dead_letters": letters["total"],
        "oldest_dead_letter_seconds": letters["oldest_seconds"],
        "failed_rows": figures["fallback"].get("failed"),
        "problems": list(_problems(figures)),
    }


def _problems(figures: Figures) -> Iterator[str]:
    """Yield what needs a person."""
    target, fallback = figures["target"], figures["fallback"]
    letters = figures["open_dead_letters"]
    if target["state"] in {"down", "refuses_us"}:
        yield f"the target: {target['said']}"
    if figures["paused"]:
        yield "paused: nothing is sent until a person resumes it on the console"
    if not figures["kafka_up"]:
        yield "Kafka does not answer the worker"
    if not fallback["database_up"]:
        yield "the database does not answer the worker"
    if letters["total"]:
        oldest = output.age(letters["oldest_seconds"] or 0)
        count = f"{letters['total']:,}, the oldest {oldest}"
        command = f"order-relay dlq list --consumer {figures['consumer']}"
        yield f"open dead letters: {count}; see {command}"
    if letters["deleted"]:
        yield f"open dead letters that left their topic: {letters['deleted']:,}"
    if fallback.get("failed"):
        yield f"FAILED rows: {fallback['failed']:,}; see order-relay fallback list --status FAILED"
    if fallback["files_replaced"]:
        yield "the fallback table's file was deleted or replaced while it was open"
    yield from _deleted(figures)


def _deleted(figures: Figures) -> Iterator[str]:
    if figures["deleted_records"]:
        yield f"Kafka deleted {figures['deleted_records']:,} records before they were read"
    if figures["near_deletion_records"]:
        yield f"Kafka deletes {figures['near_deletion_records']:,} unread records soon"


def _print(rows: Sequence[Figures]) -> None:
    counts = ("partitions", "lag", "in flight", "open dead letters", "FAILED rows")
    table = output.make_table(("worker", "consumer", "target", *counts), right=counts)
    for row in rows:
        table.add_row(
            output.plain(row["url"]),
            output.plain(row["consumer"]),
            output.plain(row["said"]),
            _count(row["partitions"]),
            _count(row["lag"]),
            f"{row['in_flight'] or 0:,}",
            _count(row["open_dead_letters"]),
            _count(row["failed_rows"]),
        )
    console = output.stdout_console()
    console.print(table)
    for row in rows:
        for problem in row["problems"]:
            console.print(output.plain(f"{row['consumer']} at {row['url']}: {problem}"))


def _count(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"
