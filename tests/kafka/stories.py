"""Stories that run side by side, as each mostly waits.

A module lists its stories, and has a fixture that starts them all; each of its tests awaits one:

    async def test_a_kill_loses_nothing(stories: Stories) -> None:
        await stories[killed_in_flight]
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

from tests.support.kafka.cluster import RealKafka

Story: TypeAlias = Callable[..., Coroutine[Any, Any, None]]
Stories: TypeAlias = Mapping[Story, asyncio.Task[None]]


@asynccontextmanager
async def told(begun: Mapping[Story, Coroutine[Any, Any, None]]) -> AsyncIterator[Stories]:
    """Run stories side by side; the rest is cancelled at the end of the block."""
    tasks = {story: asyncio.create_task(telling) for story, telling in begun.items()}
    try:
        yield tasks
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.wait(tasks.values())


class Part:
    """A story's part in an outage."""

    def __init__(self, outage: "Outage") -> None:
        self.ready = asyncio.Event()
        self.done = asyncio.Event()
        self.outage = outage

    async def begun(self) -> None:
        """Report that the story is ready for the outage, and wait until all brokers are dead."""
        self.ready.set()
        await self.outage.begun.wait()

    async def over(self) -> None:
        """Say that the story is done with it, and wait until all brokers are back."""
        self.done.set()
        await self.outage.over.wait()

    def leave(self) -> None:
        """Release all waits for the story, also if it failed."""
        self.ready.set()
        self.done.set()


class Outage:
    """All brokers are killed once all stories are ready, and restarted when all are done.

    Attributes:
        parts: One for each story.
        since: When the brokers were killed; monotonic seconds.
    """

    def __init__(self, kafka: RealKafka, *, stories: int, seconds: float) -> None:
        """Prepare an outage of at least ``seconds``."""
        self.parts = [Part(self) for _ in range(stories)]
        self.begun = asyncio.Event()
        self.over = asyncio.Event()
        self.since = 0.0
        self._kafka = kafka
        self._seconds = seconds

    async def run(self) -> None:
        """Run the outage."""
        for part in self.parts:
            await part.ready.wait()
        self.since = time.monotonic()
        await asyncio.to_thread(self._kafka.kill)
        self.begun.set()
        await asyncio.sleep(self._seconds)  # the outage itself, not a wait for something
        for part in self.parts:
            await part.done.wait()
        await asyncio.to_thread(self._kafka.revive)
        self.over.set()
