"""One request to the scripted sink, and what the sink does with it."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any


class Fault(StrEnum):
    """How a request ends without a whole answer."""

    HANG = "hang"
    """Never answered; the connection stays open."""
    RESET = "reset"
    """The connection is closed instead of an answer."""
    CUT = "cut"
    """The status and half of the body, then the connection is closed."""
    ENDLESS = "endless"
    """The status, then a body that goes on for as long as the client reads."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the sink does with one request.

    Attributes:
        status: HTTP status.
        headers: Response headers.
        body: Response body.
        gate: Take one from it before anything is answered.
        delay_seconds: Wait before anything is answered.
        drip_seconds: Wait before each byte of the body.
        fault: How it goes wrong, if it does.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    gate: asyncio.Semaphore | None = None
    delay_seconds: float = 0.0
    drip_seconds: float = 0.0
    fault: Fault | None = None

    @property
    def accepts(self) -> bool:
        """Whether the client is told 2xx."""
        return 200 <= self.status < 300 and self.fault not in (Fault.HANG, Fault.RESET)


@dataclass(eq=False)
class Received:
    """One request as it arrived, and what became of it.

    Attributes:
        arrived_at: Monotonic seconds.
        idempotency_key: Its ``Idempotency-Key``; "" without one.
        body: Its body.
        headers: Its headers, with lower-case names.
        connection: The same number for requests over one connection.
        attempt: Which one this is for its idempotency key, from 1.
        answer: What it was answered; ``None`` while the answer is being delayed.
        answered_at: Monotonic seconds; ``None`` like ``answer``.
        sent_bytes: How much of the body of an endless answer went out.
    """

    arrived_at: float
    method: str
    path: str
    idempotency_key: str
    body: bytes
    headers: Mapping[str, str]
    connection: int
    attempt: int
    answer: Answer | None = None
    answered_at: float | None = None
    sent_bytes: int = 0

    @cached_property
    def json(self) -> dict[str, Any]:
        """The body as JSON; empty where it is none."""
        try:
            parsed = json.loads(self.body)
        except ValueError:
            return {}
        return parsed if isinstance(parsed, dict) else {}

    @property
    def order_id(self) -> int | None:
        """The order's id, where the body has one."""
        return self.json.get("orderId")

    @property
    def key(self) -> str | None:
        """The record's key, where the body says it (``tests.support.orders`` writes it there)."""
        return self.json.get("key")
