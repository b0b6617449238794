"""The product's producer, started, with short limits."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from order_relay.kafka.producer import KafkaProducer
from tests.support.stage import Stage

QUICK = {
    "producer_request_timeout_ms": 500,
    "producer_delivery_timeout_ms": 1500,
    "producer_retry_backoff_ms": 50,
}


@asynccontextmanager
async def producing(stage: Stage, **settings: Any) -> AsyncIterator[KafkaProducer]:
    """A started producer with quick limits; other settings may be given."""
    producer = KafkaProducer(stage.settings(**(QUICK | settings)))
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()
