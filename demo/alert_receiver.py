"""A sample receiver of alerts: prints a line for each that Alertmanager sends.

``python -m demo.alert_receiver`` runs it until SIGTERM or Ctrl-C. A pager or chat takes its place.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aiohttp import web

from demo.command_line import PORT, CannotRun, OneLineParser, run_until_stopped

RECEIVER_PORT = 5001


def lines(message: Mapping[str, Any]) -> Iterator[str]:
    """Format each alert of a webhook's message: state, severity, name, summary, links."""
    for alert in message["alerts"]:
        labels, notes = alert["labels"], alert["annotations"]
        yield " ".join(
            (
                f"{alert['status'].upper()} {labels.get('severity', 'unknown')}",
                f"{labels['alertname']}: {notes.get('summary', '')}",
                f"({notes.get('runbook_url')}, {notes.get('console_url')})",
            )
        )


async def receive(request: web.Request) -> web.Response:
    """Print the alerts of a message; 400 if it is not one of Alertmanager's."""
    try:
        for line in lines(await request.json()):
            sys.stdout.write(f"{line}\n")
    except (ValueError, KeyError, TypeError, AttributeError):
        return web.Response(status=400, text="not a message of Alertmanager\n")
    sys.stdout.flush()
    return web.Response()


async def ready(_: web.Request) -> web.Response:
    """Answer the health check."""
    return web.Response(text="ready\n")


def main(arguments: Sequence[str]) -> int:
    """Serve until SIGTERM or Ctrl-C; returns the exit status."""
    parser = OneLineParser(
        prog="python -m demo.alert_receiver",
        description="A sample receiver of alerts: prints a line for each that Alertmanager sends.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=PORT, default=RECEIVER_PORT, help="default 5001")
    given = parser.parse_args(arguments)

    async def serve_alerts() -> None:
        application = web.Application()
        application.add_routes([web.post("/alerts", receive), web.get("/", ready)])
        runner = web.AppRunner(application)
        await runner.setup()
        try:
            await web.TCPSite(runner, given.host, given.port).start()
            await asyncio.Event().wait()
        except OSError as error:
            raise CannotRun(f"cannot listen on port {given.port}: {error.strerror}") from error
        finally:
            await runner.cleanup()

    return run_until_stopped(serve_alerts())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
