"""A consumer's runtime as the worker makes it, for tests that look into it; it is not started."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from faust.sensors.prometheus import FaustMetrics
from prometheus_client import CollectorRegistry

from agents.order_logging import order_logging
from app.consumer_app import ConsumerApp, consumer_app
from app.consumer_runtime import ConsumerRuntime
from app.consumers import configure
from app.main import create_app
from app.settings import Settings
from app.topics import Topics
from order_relay import Consumer


@contextmanager
def runtime(settings: Settings, consumer: Consumer = order_logging) -> Iterator[ConsumerRuntime]:
    """Make one; within a running loop."""
    app = create_app(settings)
    (configured,) = configure([consumer], settings)
    made = ConsumerRuntime(
        configured,
        producer=app._producer_of_events,
        topics=Topics(settings),
        fallback=app.fallback,
        metrics=app.metrics,
        faust_metrics=FaustMetrics.create(app.metrics.registry, "faust"),
        max_in_flight=settings.max_in_flight,
    )
    try:
        yield made
    finally:
        thread: Any = made.app.reader._thread
        thread.thread_loop.close()  # it never ran


def app_of_a_consumer(settings: Settings) -> ConsumerApp:
    """A consumer's Faust app alone."""
    return consumer_app(
        "order_logging", settings, FaustMetrics.create(CollectorRegistry(), "faust")
    )
