"""Switches tracing on if the settings say so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from order_relay.errors import InvalidSettings
from order_relay.settings import Settings

if TYPE_CHECKING:
    from order_relay.tracing.spans import Tracing


def make_tracing(settings: Settings) -> Tracing | None:
    """Return what makes spans; ``None`` if tracing is off. Starts and connects nothing.

    Raises:
        InvalidSettings: The extra ``otel`` is not installed, or OpenTelemetry cannot use one of its
            own variables; one line.
    """
    if settings.tracing == "off":
        return None
    try:
        from order_relay.tracing.export import SpanExport  # noqa: PLC0415 - loads OpenTelemetry
        from order_relay.tracing.spans import Tracing  # noqa: PLC0415 - loads OpenTelemetry

        return Tracing(SpanExport())
    except ModuleNotFoundError as error:
        raise InvalidSettings("TRACING=otlp needs: pip install 'order-relay[otel]'") from error
    except Exception as error:
        raise InvalidSettings(f"TRACING=otlp: OpenTelemetry cannot start: {error}") from error


@asynccontextmanager
async def running_tracing(settings: Settings) -> AsyncIterator[Tracing | None]:
    """Trace until the end, then send the spans that are left; see ``make_tracing``."""
    tracing = make_tracing(settings)
    if tracing is None:
        yield None
        return
    tracing.export.start()
    try:
        yield tracing
    finally:
        await tracing.export.stop()
