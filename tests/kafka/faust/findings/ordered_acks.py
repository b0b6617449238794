"""Finding F: keys side by side, each key in order, acks in offset order: the safe pattern."""

import asyncio
import random
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import cast

from faust.streams import Stream
from faust.types import EventT, StreamT

from tests.kafka.faust.findings.stock import note, raw_topic, stock_app

IN_FLIGHT = 64
SHORT_SECONDS = 0.02
# Some records take longer than several commits, and all behind them is done: acks out of order
# would commit past them.
LONG_SECONDS = 0.3
LONG_EVERY = 47

app = stock_app()
tasks: set[asyncio.Task[None]] = set()


@dataclass(eq=False, slots=True)
class Entry:
    """A record in flight."""

    event: EventT[bytes]
    done: bool = False


@app.agent(raw_topic(app))
async def deliver(stream: StreamT[bytes]) -> None:
    """Chain the records of a key, run the keys side by side, ack only the done prefix."""
    places = asyncio.Semaphore(IN_FLIGHT)
    # One queue for each assignment's generation: records in flight before a rebalance must not
    # block later ones.
    gates: dict[tuple[int, int], deque[Entry]] = defaultdict(deque)
    last_of_key: dict[tuple[int, bytes], asyncio.Task[None]] = {}

    async def handle(entry: Entry, gate: deque[Entry], before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        long = entry.event.message.offset % LONG_EVERY == 0
        await asyncio.sleep(LONG_SECONDS if long else random.uniform(0, SHORT_SECONDS))
        note("delivered", entry.event)
        entry.done = True
        places.release()
        while gate and gate[0].done:
            await stream.ack(gate.popleft().event)

    async for event in cast(Stream[bytes], stream).noack().events():
        await places.acquire()
        message = event.message
        gate = gates[message.partition, message.generation_id]
        entry = Entry(event)
        gate.append(entry)
        key = message.partition, bytes(message.key)
        task = asyncio.create_task(handle(entry, gate, last_of_key.get(key)))
        last_of_key[key] = task
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        # At a rebalance Faust waits for every event that is still referenced.
        del event, message, entry
