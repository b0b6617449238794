"""A consumer's runtime as the worker makes it, for tests that look into it; it is not started."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from faust.sensors.prometheus import FaustMetrics
from prometheus_client import CollectorRegistry

from agents.order_logging import order_logging
from order_relay import Consumer
from order_relay.kafka.topics import Topics
from order_relay.settings import Settings
from order_relay.settings.consumers import configure
from order_relay.worker.consumer_app import ConsumerApp, consumer_app
from order_relay.worker.consumer_runtime import ConsumerRuntime
from order_relay.worker.relay_app import RelayApp


@contextmanager
def runtime(settings: Settings, consumer: Consumer = order_logging) -> Iterator[ConsumerRuntime]:
    """Make one; within a running loop."""
    app = RelayApp(settings)
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
    return consumer_app(settings, FaustMetrics.create(CollectorRegistry(), "faust"))
