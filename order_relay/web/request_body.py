"""Reading the body of a request, within limits of size and time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web
from aiohttp.http import HttpProcessingError

BODY_SECONDS = 10.0


class BodyRefused(Exception):
    """A body that is too large (413), too slow (408) or not whole (400)."""

    def __init__(self, status: int, error: str) -> None:
        """Answer with ``status``; ``error`` is the reason."""
        super().__init__(error)
        self.status = status


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
        BodyRefused: There is no such body.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.content.iter_any():
                if len(body) + len(chunk) > max_bytes:
                    raise BodyRefused(413, f"the body must be at most {max_bytes} bytes")
                on_chunk(len(chunk))
                body += chunk
    except TimeoutError:
        raise BodyRefused(408, f"the body was not received within {seconds:g} s") from None
    except (
        ConnectionError,
        web.RequestPayloadError,
        HttpProcessingError,
        RuntimeError,  # from aiohttp if the connection ended before the first read
    ) as error:
        # Mostly the client is gone and does not read this.
        raise BodyRefused(400, "the body ended early") from error
    return bytes(body)
