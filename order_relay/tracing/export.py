"""Sends spans to a collector over OTLP/HTTP, in a thread of its own.

OpenTelemetry's own variables say where to, and how many spans wait in memory. Spans beyond that
are dropped: a collector that is slow or away never delays a delivery.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import (
    SERVICE_NAME,
    SERVICE_VERSION,
    OTELResourceDetector,
    Resource,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Tracer

from order_relay.errors import InvalidSettings
from order_relay.version import VERSION

# How long the end of the process waits for the last spans.
STOP_SECONDS = 2.0


class SpanExport:
    """A tracer, and the thread that sends its spans.

    It is not OpenTelemetry's global tracer provider, which belongs to the application.
    """

    def __init__(self) -> None:
        """Read OpenTelemetry's variables. Starts and connects nothing.

        Raises:
            Exception: OpenTelemetry cannot use one of its variables.
        """
        defaults = Resource({SERVICE_NAME: "order-relay", SERVICE_VERSION: VERSION})
        self._provider = TracerProvider(
            # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES override our own.
            resource=Resource.create().merge(defaults).merge(OTELResourceDetector().detect()),
            shutdown_on_exit=False,  # it would wait for half a minute
        )
        self._exporter = OTLPSpanExporter()
        self.tracer: Tracer = self._provider.get_tracer("order_relay", VERSION)

    def start(self) -> None:
        """Start the thread.

        Raises:
            InvalidSettings: The OTEL_BSP variables contradict each other; one line.
        """
        try:
            processor = BatchSpanProcessor(self._exporter)
        except ValueError as error:
            raise InvalidSettings(f"TRACING=otlp: OTEL_BSP_...: {error}") from error
        self._provider.add_span_processor(processor)

    async def stop(self) -> None:
        """Send the spans that are left, for ``STOP_SECONDS`` at most; the rest is dropped."""
        loop = asyncio.get_running_loop()
        sent = asyncio.Event()

        def stop() -> None:
            try:
                self._provider.shutdown()
            finally:
                with suppress(RuntimeError):  # it took longer, and the loop has ended
                    loop.call_soon_threadsafe(sent.set)

        # Daemonic: neither the loop nor the interpreter waits for it.
        threading.Thread(target=stop, name="tracing-stop", daemon=True).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await sent.wait()
