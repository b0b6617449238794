"""The relay's web server as a Faust service, in place of Faust's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mode import Service

from order_relay.web.server import WebServer


class WebService(Service):
    """Starts and stops the server when Faust says so."""

    def __init__(self, make_server: Callable[[], WebServer], **kwargs: Any) -> None:
        """Make the server only at the start, with what is there by then."""
        super().__init__(**kwargs)
        self._make_server = make_server
        self._server: WebServer | None = None

    async def on_start(self) -> None:
        """Serve, or end the start with one line."""
        self._server = self._make_server()
        try:
            await self._server.start()
        except OSError as error:
            host, port = self._server.host, self._server.port
            raise SystemExit(
                f"cannot serve on WEB_HOST={host} WEB_PORT={port}: {error.strerror or error}"
            ) from None

    async def on_stop(self) -> None:
        """Stop serving."""
        if self._server is not None:
            await self._server.stop()
