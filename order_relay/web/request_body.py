"""Reading the body of a request, within limits of size and time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.http import HttpProcessingError

BODY_SECONDS = 10.0


class Refused(web.HTTPException):
    """Ends a request with an error in JSON."""

    def __init__(
        self, status: int, error: str, *, retry_after: int | None = None, **fields: Any
    ) -> None:
        """Answer with ``status``; ``fields`` stand beside ``error``."""
        self.status_code = status
        headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
        super().__init__(
            headers=headers if retry_after is None else {"Retry-After": str(retry_after)},
            text=json.dumps({"error": error, **fields}),
            content_type="application/json",
        )


async def read_body(
    request: web.Request,
    max_bytes: int,
    *,
    seconds: float,
    on_chunk: Callable[[int], None] = lambda _: None,
) -> bytes:
    """Return the whole body.

    Args:
        request: The request, whose head has come.
        max_bytes: Maximum size.
        seconds: From now to the end of the body.
        on_chunk: Called with the size of each part before it is kept. What it raises ends the read.

    Raises:
        Refused: The body is too large (413), too slow (408) or not whole (400).
    """
    too_large = Refused(413, f"the body must be at most {max_bytes} bytes")
    if (request.content_length or 0) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.content.iter_any():
                if len(body) + len(chunk) > max_bytes:
                    raise too_large
                on_chunk(len(chunk))
                body += chunk
    except TimeoutError:
        raise Refused(408, f"the body was not received within {seconds:g} s") from None
    except (
        ConnectionError,
        web.RequestPayloadError,
        HttpProcessingError,
        RuntimeError,  # from aiohttp if the connection ended before the first read
    ) as error:
        # Mostly the client is gone and does not read this.
        raise Refused(400, "the body ended early", field=None) from error
    return bytes(body)
