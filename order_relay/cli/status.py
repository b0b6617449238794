"""``order-relay status``: what the running workers say of themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import aiohttp
import click
from yarl import URL

from order_relay.cli import command, output
from order_relay.deliveries.lookup import get_object, make_client
from order_relay.settings import load_settings
from order_relay.web.console.cluster import ConsumerView, WorkerAnswer

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
    urls = urls or (str(load_settings().own_url),)
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
            of_consumer = (url / "history").with_query(consumer=answer.body["consumer"])
            history = await get_object(client, of_consumer, {}, MAX_STATS_BYTES)
            past = {} if isinstance(history, str) else history.body
            rows.append(_summary(str(url), answer.body, past))
            if name is None:
                names += [one for one in answer.body["consumers"] if one != rows[0]["consumer"]]
        except (KeyError, TypeError, AttributeError):
            return str(answer.body.get("error", "it is not an order relay of this version"))
    return rows


def _summary(url: str, figures: Figures, history: Figures) -> Figures:
    view = ConsumerView(figures["consumer"], [WorkerAnswer(url, figures, history)])
    target, letters = figures["target"], figures["open_dead_letters"]
    bad = [one for one in view.verdicts() if one.level == "bad"]
    problems = [f"{one.text} {url.rstrip('/')}{one.link}" if one.link else one.text for one in bad]
    if figures["paused"]:
        problems.append("Paused: nothing is sent until a person resumes it on the console.")
    return {
        "url": url,
        "consumer": view.name,
        "version": figures["version"],
        "target": view.state,
        "since_seconds": target["since_seconds"],
        "said": view.said,
        "lag": view.lag,
        "partitions": len(figures["partitions"]),
        "in_flight": figures["in_flight"],
        "open_dead_letters": letters["total"],
        "oldest_dead_letter_seconds": letters["oldest_seconds"],
        "failed_rows": figures["fallback"].get("failed"),
        "problems": problems,
    }


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
