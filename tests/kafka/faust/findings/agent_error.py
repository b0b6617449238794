"""Finding B: an agent that cannot handle one of its records."""

from faust.types import StreamT

from tests.kafka.faust.findings.stock import note, raw_topic, stock_app

app = stock_app()


@app.agent(raw_topic(app))
async def deliver(stream: StreamT[bytes]) -> None:
    """Raise on the value `broken`, before anything was done for that record."""
    async for event in stream.events():
        note("started", event)
        if event.value == b"broken":
            raise RuntimeError("the logger refused")
        note("delivered", event)
