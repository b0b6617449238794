"""Sends spans to a collector over OTLP/HTTP, in a thread of its own.

OpenTelemetry's own variables say where to, and how many spans wait in memory. Spans beyond that
are dropped: a collector that is slow or away never delays a delivery.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

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

logger = logging.getLogger(__name__)

# What OpenTelemetry would do instead.
_INSTEAD = re.compile(r"[.,] (?:defaulting|using default|skipping).*", re.IGNORECASE | re.DOTALL)

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
        with _wrong_variables_raise():
            self._provider = TracerProvider(
                # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES override our own.
                resource=Resource.create().merge(defaults).merge(OTELResourceDetector().detect()),
                shutdown_on_exit=False,  # it would wait for half a minute
            )
            self._exporter = OTLPSpanExporter()
        if not self._exporter._endpoint.startswith(("http://", "https://")):
            raise ValueError("OTEL_EXPORTER_OTLP_ENDPOINT must begin with http:// or https://")
        self.tracer: Tracer = self._provider.get_tracer("order_relay", VERSION)

    def start(self) -> None:
        """Start the thread.

        Raises:
            InvalidSettings: The OTEL_BSP variables contradict each other; one line.
        """
        try:
            with _wrong_variables_raise():
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


class _Complaints(logging.Handler):
    """Keeps the first thing that OpenTelemetry says of a variable; passes the rest on."""

    first = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Handle a record of OpenTelemetry's."""
        if record.msg.startswith(("Failed to detect", "Exception", "Detector")):
            logger.warning(record.getMessage())  # of this host, not of a variable
        elif not self.first:
            self.first = (
                "OTEL_EXPORTER_OTLP_HEADERS must be name=value, separated by commas; values in "
                "URL encoding"
                if record.msg.startswith("Header")  # its value is a secret
                else _INSTEAD.sub("", record.getMessage())
            )


@contextmanager
def _wrong_variables_raise() -> Iterator[None]:
    """Raise ``ValueError`` where OpenTelemetry only logs a wrong variable, and ignores it."""
    library, complaints = logging.getLogger("opentelemetry"), _Complaints(logging.WARNING)
    before = library.level, library.propagate
    library.setLevel(logging.WARNING)
    library.propagate = False
    library.addHandler(complaints)
    try:
        yield
    finally:
        library.removeHandler(complaints)
        library.setLevel(before[0])
        library.propagate = before[1]
    if complaints.first:
        raise ValueError(complaints.first)
