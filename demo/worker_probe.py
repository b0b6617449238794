"""Asks the worker over HTTP how it is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import aiohttp

from demo.consumer_ledger import ConsumerLedger
from demo.worker_metrics import WorkerMetrics, parse_metrics
from order_relay.settings import Settings

EVERY_SECONDS = 1.0
_PATIENCE = aiohttp.ClientTimeout(total=2.0)


class WorkerProbe:
    """Asks every second, as an async context manager; further consumers' ledgers hear of them.

    Attributes:
        answers: Whether the web server answered the last time.
        ready: Whether ``/health/ready`` said 200 the last time.
        metrics: The last figures that came.
    """

    def __init__(self, settings: Settings, consumers: Sequence[ConsumerLedger] = ()) -> None:
        self._consumers = consumers
        self._address = f"http://{settings.web_host}:{settings.web_port}"
        self._topic = settings.order_paid_topic
        self._task: asyncio.Task[None] | None = None
        self.answers = False
        self.ready = False
        self.metrics = WorkerMetrics()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._ask_on())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _ask_on(self) -> None:
        async with aiohttp.ClientSession(timeout=_PATIENCE) as session:
            while True:
                try:
                    await self._ask(session)
                except (aiohttp.ClientError, TimeoutError, OSError):
                    self.answers = self.ready = False
                await asyncio.sleep(EVERY_SECONDS)

    async def _ask(self, session: aiohttp.ClientSession) -> None:
        async with session.get(f"{self._address}/health/ready") as response:
            ready = response.status == 200
        async with session.get(f"{self._address}/metrics") as response:
            text = await response.text(errors="replace")
        for consumer in self._consumers:
            named = {"consumer": consumer.name}
            async with session.get(f"{self._address}/stats", params=named) as response:
                if response.ok:
                    consumer.told((await response.json())["deliveries"])
        self.answers, self.ready = True, ready
        self.metrics = parse_metrics(text, self._topic)
