"""Switches tracing on if the settings say so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from order_relay.errors import InvalidSettings
from order_relay.settings import Settings

if TYPE_CHECKING:
    from order_relay.tracing.spans import Tracing

# One module of each package of the extra.
PACKAGES = (
    "opentelemetry.trace",
    "opentelemetry.sdk.trace",
    "opentelemetry.exporter.otlp.proto.http",
)


def make_tracing(settings: Settings) -> Tracing | None:
    """Return what makes spans; ``None`` if tracing is off. Starts and connects nothing.

    Raises:
        InvalidSettings: The extra ``otel`` is not installed, or OpenTelemetry cannot use one of its
            own variables; one line.
    """
    if settings.tracing == "off":
        return None
    if not all(map(_is_installed, PACKAGES)):
        raise InvalidSettings("TRACING=otlp needs: pip install 'order-relay[otel]'")
    from order_relay.tracing.export import SpanExport  # noqa: PLC0415 - loads OpenTelemetry
    from order_relay.tracing.spans import Tracing  # noqa: PLC0415 - loads OpenTelemetry

    try:
        return Tracing(SpanExport())
    except Exception as error:
        raise InvalidSettings(f"TRACING=otlp: OpenTelemetry cannot start: {error}") from error


@asynccontextmanager
async def running_tracing(settings: Settings) -> AsyncIterator[Tracing | None]:
    """Trace until the end, then send the spans that are left; see ``make_tracing``."""
    tracing = make_tracing(settings)
    if tracing is None:
        yield None
        return
    tracing.start()
    try:
        yield tracing
    finally:
        await tracing.stop()


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False
