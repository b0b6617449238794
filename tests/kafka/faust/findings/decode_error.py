"""Finding E: a topic with a serializer, which decodes outside the agent."""

import os

from faust.types import StreamT

from tests.kafka.faust.findings.stock import TOPIC, note, stock_app

app = stock_app()


@app.agent(app.topic(os.environ[TOPIC], key_serializer="raw", value_serializer="json"))
async def deliver(stream: StreamT[bytes]) -> None:
    """Note every record received."""
    async for event in stream.events():
        note("delivered", event)
