"""A request to a server under test, and its answer."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        """Its body as JSON."""
        return json.loads(self.text)


async def ask(url: object, method: str = "GET", *, limit: float = 60.0, **options: Any) -> Answer:
    """Make a request with a session of its own; options are those of aiohttp."""
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(limit)) as session,
        session.request(method, str(url), **options) as answer,
    ):
        return Answer(answer.status, answer.headers, await answer.text())
