"""Finding C: a timer that raises, beside an independent agent."""

from faust.types import StreamT

from tests.kafka.faust.findings.stock import note, raw_topic, stock_app

app = stock_app()
delivered: set[bytes] = set()


@app.agent(raw_topic(app))
async def deliver(stream: StreamT[bytes]) -> None:
    """Note every record."""
    async for event in stream.events():
        delivered.add(event.value)
        note("delivered", event)


@app.timer(interval=0.2)  # type: ignore[untyped-decorator]
async def report() -> None:
    """Fail once a record was delivered, as without a database."""
    if delivered:
        note("timer raises")
        raise RuntimeError("no database")
