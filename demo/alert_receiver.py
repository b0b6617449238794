"""A sample receiver of alerts: prints a line for each that Alertmanager sends.

``python -m demo.alert_receiver`` runs it until SIGTERM or Ctrl-C. A pager or chat takes its place.
"""

from __future__ import annotations

import asyncio

import click
from aiohttp import web

from demo.command_line import LISTEN_ON, PORT, listening, run_command, run_until_stopped


async def receive(request: web.Request) -> web.Response:
    """Print state, severity, name, summary and links of each alert of a message of Alertmanager.

    Anything else gets 400.
    """
    try:
        for alert in (await request.json())["alerts"]:
            labels, notes = alert["labels"], alert["annotations"]
            click.echo(
                f"{alert['status'].upper()} {labels.get('severity', 'unknown')} "
                f"{labels['alertname']}: {notes.get('summary', '')} "
                f"({notes.get('runbook_url')}, {notes.get('console_url')})"
            )
    except (ValueError, KeyError, TypeError, AttributeError):
        return web.Response(status=400, text="not a message of Alertmanager\n")
    return web.Response()


async def ready(_: web.Request) -> web.Response:
    """Answer the health check."""
    return web.Response(text="ready\n")


@click.command()
@LISTEN_ON
@click.option("--port", type=PORT, default=5001, show_default=True, help="Port to listen on.")
def main(host: str, port: int) -> None:
    """Print a line for each alert that Alertmanager sends, until SIGTERM or Ctrl-C."""

    async def serve_alerts() -> None:
        routes = [web.post("/alerts", receive), web.get("/", ready)]
        async with listening(routes, host, port, "the receiver of alerts", "--port"):
            await asyncio.Event().wait()

    run_until_stopped(serve_alerts())


if __name__ == "__main__":
    run_command(main)
