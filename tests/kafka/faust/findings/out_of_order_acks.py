"""Finding A: some records never end, and all others are acked at once."""

import asyncio
import os
from typing import cast

from faust.streams import Stream
from faust.types import EventT, StreamT

from tests.kafka.faust.findings.stock import note, raw_topic, stock_app

app = stock_app()
unfinished = {int(offset) for offset in os.environ["FINDING_UNFINISHED"].split()}
tasks: set[asyncio.Task[None]] = set()


@app.agent(raw_topic(app))
async def deliver(stream: StreamT[bytes]) -> None:
    """Handle each record in a task of its own and ack it when it is done."""

    async def handle(event: EventT[bytes]) -> None:
        note("started", event)
        if event.message.offset in unfinished:
            await asyncio.Event().wait()
        await stream.ack(event)
        note("acked", event)

    async for event in cast(Stream[bytes], stream).noack().events():
        task = asyncio.create_task(handle(event))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
