"""A sample receiver of alerts: prints a line for each that Alertmanager sends.

``python -m demo.alert_receiver`` runs it until SIGTERM or Ctrl-C. A pager or chat takes its place.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from aiohttp import web

from demo.command_line import PORT, OneLineParser, listening, run_until_stopped

RECEIVER_PORT = 5001


async def receive(request: web.Request) -> web.Response:
    """Print state, severity, name, summary and links of each alert of a message of Alertmanager.

    Anything else gets 400.
    """
    try:
        for alert in (await request.json())["alerts"]:
            labels, notes = alert["labels"], alert["annotations"]
            sys.stdout.write(
                f"{alert['status'].upper()} {labels.get('severity', 'unknown')} "
                f"{labels['alertname']}: {notes.get('summary', '')} "
                f"({notes.get('runbook_url')}, {notes.get('console_url')})\n"
            )
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
        async with listening(
            application, given.host, given.port, "the receiver of alerts", "--port"
        ):
            await asyncio.Event().wait()

    return run_until_stopped(serve_alerts())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
