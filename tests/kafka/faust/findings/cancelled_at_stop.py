"""Finding D: a record in flight when the worker is told to stop, without stream_wait_empty."""

import asyncio

from faust.types import StreamT

from tests.kafka.faust.findings.stock import note, raw_topic, stock_app

app = stock_app(stream_wait_empty=False)


@app.agent(raw_topic(app))
async def deliver(stream: StreamT[bytes]) -> None:
    """Take up a record and never finish it."""
    async for event in stream.events():
        note("started", event)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            note("cancelled", event)
            raise
        note("delivered", event)
